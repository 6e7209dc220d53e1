"""Builds the packages of clsecure: ``invoke build-deb``, ``build-rpm``, ``build-repo``, ``release``."""
