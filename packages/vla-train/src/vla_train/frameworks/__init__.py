"""One YAML file a framework preset."""
