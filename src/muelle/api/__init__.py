"""Everything over HTTP that is not a hot prediction: control endpoints, OpenAPI, the docs page.

`app` imports FastAPI, which takes half a second: import it late. Nothing here does it for you.
"""
