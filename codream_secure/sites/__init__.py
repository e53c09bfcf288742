"""A client or a server that lives in a folder and talks in bytes. Nothing here knows Flower."""
