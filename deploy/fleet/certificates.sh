#!/bin/sh
# The fleet's own authority, and certificates by it. One certificate is one connection; its CN is who somebody is.
#
#   sh certificates.sh DIR authority              fleet-ca.key and .crt: keep the key away from any broker
#   sh certificates.sh DIR server NAME...         server.key and .crt of the center, for each of its DNS names
#   sh certificates.sh DIR client NAME [DAYS]     NAME.key and .crt: a site (its site.id), or collector-live-1 and the like
set -eu
dir=$1 what=$2
shift 2
umask 077
mkdir -p "$dir"
cd "$dir"

make() { # CN, days, extensions
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
    printf '%s\n' 'basicConstraints=critical,CA:FALSE' "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -out "$1.crt" -days "$2" -extfile "$1.ext" \
        -CA fleet-ca.crt -CAkey fleet-ca.key -set_serial "0x$(openssl rand -hex 16)"
    rm "$1.csr" "$1.ext"
}

case $what in
authority)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout fleet-ca.key -out fleet-ca.crt \
        -days 7300 -subj "/CN=Heliograph fleet" -addext keyUsage=critical,keyCertSign,cRLSign
    ;;
server)
    names=
    for name; do
        case $name in *[!0-9.]*) names=$names,DNS:$name ;; *) names=$names,IP:$name ;; esac
    done
    make server 825 "extendedKeyUsage=serverAuth
subjectAltName=${names#,}"
    ;;
client)
    # What stands in topics and rules: nothing that they would read as a wildcard or another level.
    case $1 in '' | *[!A-Za-z0-9_.-]*) echo "$1: letters, digits, dash, dot and underscore only" >&2 && exit 64 ;; esac
    make "$1" "${2:-825}" extendedKeyUsage=clientAuth
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
