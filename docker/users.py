"""Make MLflow's user for suture, who is no administrator, or give it its present password: users.py NAME

MLFLOW_TRACKING_URI, _USERNAME and _PASSWORD are the administrator's, MLFLOW_USER_PASSWORD is the user's.
"""

import os
import sys

from mlflow import MlflowException
from mlflow.server import get_app_client

client = get_app_client("basic-auth", os.environ["MLFLOW_TRACKING_URI"])
name, password = sys.argv[1], os.environ["MLFLOW_USER_PASSWORD"]
try:
    client.create_user(name, password)
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    client.update_user_password(name, password)
