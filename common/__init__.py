"""What every room may use: no Flower, importable anywhere."""
