"""A page to try models on: drop a picture, see what each of them reads and where it looks. Works offline.

Standard library only: the page has four addresses and one user, so a web framework would bring more to install and to
keep up than it saves here. Nothing is written to disk; pictures live in memory until they are read.
"""
