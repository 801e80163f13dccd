#!/bin/sh
# Makes the component dist/next-best.wasm. `bindings` was generated from the contract in `wit`
# (`wit-bindgen c wit --world strategy --out-dir bindings`).
#
# The wasi-sdk does it in one step. Without it clang compiles, of zig or the system, and the linker of
# Rust's toolchain links with the C library it has for its target wasm32-wasip2.
set -eu
cd "$(dirname "$0")"
mkdir -p build dist
out=build/next-best.wasm
flags="-std=c17 -Oz -Wall -Wextra -I bindings"
types=bindings/strategy_component_type.o

if [ -n "${WASI_SDK_PATH:-}" ]; then
  # shellcheck disable=SC2086 # flags are several
  "$WASI_SDK_PATH/bin/clang" --target=wasm32-wasip2 -mexec-model=reactor $flags \
    strategy.c bindings/strategy.c "$types" -o "$out"
else
  if zig version >/dev/null 2>&1; then
    cc="zig cc -target wasm32-wasi"
  elif python3 -m ziglang version >/dev/null 2>&1; then
    cc="python3 -m ziglang cc -target wasm32-wasi"
  elif clang --version >/dev/null 2>&1; then
    cc="clang --target=wasm32-wasi"
  else
    echo "build.sh: there is no C compiler for WebAssembly: set WASI_SDK_PATH, or pip install ziglang" >&2
    exit 1
  fi
  rust=$(rustc --print sysroot)/lib/rustlib
  tools=$rust/$(rustc -vV | sed -n 's/^host: //p')/bin
  libs=$rust/wasm32-wasip2/lib/self-contained
  if ! [ -f "$libs/libc.a" ] || ! [ -x "$tools/wasm-component-ld" ]; then
    echo "build.sh: Rust's toolchain cannot link for WebAssembly: rustup target add wasm32-wasip2" >&2
    exit 1
  fi
  # shellcheck disable=SC2086 # flags and compiler are several words
  for source in strategy.c bindings/strategy.c; do
    $cc $flags -c "$source" -o "build/$(echo "${source%.c}" | tr / -).o"
  done
  "$tools/wasm-component-ld" --wasm-ld-path "$tools/gcc-ld/wasm-ld" --gc-sections --strip-all \
    --entry _initialize "$libs/crt1-reactor.o" build/strategy.o build/bindings-strategy.o "$types" \
    "$libs/libc.a" "$rust"/wasm32-wasip2/lib/libcompiler_builtins-*.rlib -o "$out"
fi
mv "$out" dist/next-best.wasm
