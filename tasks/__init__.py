"""The stages: one file each, named by the seven words, with its params, its identity and its task."""
