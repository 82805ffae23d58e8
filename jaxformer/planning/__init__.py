"""Plans runs on hardware that is not attached: memory, communication, time and cost (`jaxformer plan`, `jf.plan`)."""
