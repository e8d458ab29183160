"""The daemon that starts and guards plain processes. Standard library only: this folder is copied to other machines as it is."""
