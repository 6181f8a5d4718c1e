# For deploy/backup and deploy/restore: which service keeps the vectors, and where.
# A relative file is meant from where the command was typed.
target() { [[ $1 == /* ]] && echo "$1" || echo "${OLDPWD:-$PWD}/$1"; }

if docker compose config --services | grep -qx qdrant; then
  service=qdrant data=/qdrant/storage
else
  service=qdrant-svc data=/data # the embedded store of docker-compose.offline.yml
fi

# A shell command in a new container of that service, with its volumes and its user.
in_store() { docker compose run --rm --no-deps --no-TTY --entrypoint sh "$service" -c "$1"; }
