"""StarVLA's runs, configs and command lines in this project's terms."""
