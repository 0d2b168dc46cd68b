#!/bin/sh
# Stands in for nvcc where only types are checked: makes the files that nvcc would, with nothing in them.
echo "Cuda compilation tools, release 13.0, V13.0.88"
folder=
while [ $# -gt 0 ]; do
    case "$1" in
    -o) : >"$2" && shift ;;
    --output-directory) folder="$2" && shift ;;
    *.cu) [ -z "$folder" ] || : >"$folder/$(basename "$1" .cu).ptx" ;;
    esac
    shift
done
