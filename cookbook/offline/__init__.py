"""The embedded default: a small real model and real data, built once by `make offline`."""

from cookbook.offline.state import OfflineNotBuilt, offline_folder, offline_path

__all__ = ["OfflineNotBuilt", "offline_folder", "offline_path"]
