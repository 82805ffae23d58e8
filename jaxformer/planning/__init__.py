"""Planning: predicts memory, communication, time and cost of runs on hardware that is not attached (`jaxformer plan`,
`jf.plan`).
"""
