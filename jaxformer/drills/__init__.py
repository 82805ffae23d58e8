"""Implementation of `jaxformer drill`, which damages copies of a small training run on the user's own storage, and
checks that the damage is detected.
"""
