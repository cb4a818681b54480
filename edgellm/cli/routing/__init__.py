"""The commands of `edgellm route`, one file each."""
