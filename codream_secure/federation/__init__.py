"""The parties of a run on one machine: clients, server, and the observer that measures them."""
