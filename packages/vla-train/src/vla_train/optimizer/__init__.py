"""How weights are stepped: groups and rates, masters, moments, averages, number types."""
