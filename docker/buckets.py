"""Make the buckets that are not there yet: buckets.py NAME..."""

import sys

import boto3

store = boto3.client("s3")
there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in there:
        store.create_bucket(Bucket=name)
