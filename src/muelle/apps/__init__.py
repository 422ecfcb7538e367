"""A user's own web application (ASGI or WSGI) in worker processes, beside the served models.

`child` runs in those processes, `local` is what the application itself calls; the rest runs in the
server. Not for models (`workers`) and not for HTTP (`transport`).
"""
