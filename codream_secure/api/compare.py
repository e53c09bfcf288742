"""`compare` and `report`: several methods at equal cost, and the page about runs."""
