"""What a run was made from and what it found: manifest, stamps, results."""
