"""Other libraries' loops, with zero-order steps. Each module imports its library, and is imported only where used."""
