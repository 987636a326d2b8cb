"""No test asks a hub; this must be said before any library of theirs is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
