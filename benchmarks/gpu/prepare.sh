#!/usr/bin/env bash
# Fill .gpu, which is sent to a GPU machine without network: wheels it lacks and this project, 5 MB.
# Usage: benchmarks/gpu/prepare.sh [REVISION]
set -eu
root="$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)"
revision="${1:-HEAD}" carried="${GPU_CARRIED:-$root/.gpu}"
exclude="$(git -C "$root" rev-parse --git-path info/exclude)"
cd "$root"
mkdir -p "$carried/whl" "$(dirname "$exclude")"
grep -qx '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"

# The machine is expected to have torch, transformers, lightning, peft, triton, pyarrow, rich,
# matplotlib and pytest for Python 3.12. What follows, it has not.
packages=(
  jsonargparse==4.53.0 omegaconf==2.4.0 docstring-parser==0.18.0 typeshed-client==2.14.0
  math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.13.2
  datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 liger-kernel==0.8.5
)
for package in "${packages[@]}"; do
  name="${package%%==*}"
  compgen -G "$carried/whl/${name//-/_}-${package##*==}-*.whl" >/dev/null && continue
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 -d "$carried/whl" "$package"
done

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
rm -f "$carried"/whl/lightning_vcppo-*.whl
git archive "$revision" | tar -x -C "$scratch"
python3 -m pip wheel -q --no-deps -w "$carried/whl" "$scratch"
rm -rf "$scratch"/build "$scratch"/*.egg-info
tar -czf "$carried/project.tar.gz" -C "$scratch" --exclude=docs/images .
cp "$root/benchmarks/gpu/run.sh" "$carried/run.sh"
du -sh "$carried"
