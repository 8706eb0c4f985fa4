"""The metadata lives in pyproject.toml; this file keeps `python setup.py …` working."""

from setuptools import setup

setup()
