"""Pictures in folders: which there are, in which role, and how they become images."""
