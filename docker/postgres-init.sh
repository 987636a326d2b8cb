#!/bin/sh
# One role and one database for each service, with the passwords of the secret files: psql reads them, no command line has them.
set -eu
export SECRETS="${SECRETS:-/run/secrets}"
for name in mlflow prefect; do
    NAME=$name psql -v ON_ERROR_STOP=1 -q -U "${PGUSER:-postgres}" -d postgres <<'SQL'
\set name `echo "$NAME"`
\set password `cat "$SECRETS/${NAME}_database"`
create role :"name" login password :'password';
create database :"name" owner :"name";
revoke all on database :"name" from public;
SQL
done
