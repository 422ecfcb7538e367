"""The control plane's parts: what should be served, what is, and how the one becomes the other.

`management` is their door. They decide nothing that a decider can (`lifecycle`, `routing`).
"""
