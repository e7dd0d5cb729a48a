"""Packages to install; all else is in setup.cfg. configs/ travels with the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["steph_jax*"]), "steph_jax.configs"],
    package_dir={"steph_jax.configs": "configs"},
)
