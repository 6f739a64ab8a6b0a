"""Modules of task 2b. As a package it is found also where the notebook runs as a script."""
