"""Runtimes: plugins that turn an artifact into a running model. Used inside a worker only.

The descriptors (`RUNTIME`) are light and may be imported anywhere; `load` is where a heavy library
comes in.
"""
