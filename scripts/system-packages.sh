#!/usr/bin/env bash
# Installs the Debian packages that the integration tests use, where they are missing.
set -euo pipefail
packages=(dcmtk dicom3tools libpixelmed-java default-jdk-headless strace openssl
  orthanc orthanc-dicomweb chromium poppler-utils)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
sudo=""
if [ "$(id -u)" -ne 0 ]; then
  sudo="sudo"
fi
if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
  echo "error: install these packages first: ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
