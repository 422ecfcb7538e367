"""Applications (ASGI, WSGI) that are served beside the models, in processes of their own."""
