#!/bin/sh
# Peak memory of pre-training on much text: makes FOLDER/text.jsonl with MB megabytes by repeating the bundled
# English text with variation, trains two steps on it, and prints the largest resident size.
#
#     tools/bench/large-text.sh target/release/lehr 2000 /tmp/large
#
# Every copy of a line gets the copy's number and a word of its own, so no two documents are equal and the number of
# different words grows with the text. Needs awk and /usr/bin/time.
set -eu
lehr=$1 mb=$2 folder=$3
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
[ -s "$folder/text.jsonl" ] || awk -v bytes="$mb"000000 '
    { gsub(/["\\\r\t]/, ""); if (length($0) > 0) line[n++] = $0 }
    function word(number,   text) {
        for (text = ""; number > 0; number = int(number / 26)) text = text substr("abcdefghijklmnopqrstuvwxyz", number % 26 + 1, 1)
        return text
    }
    END {
        for (copy = 1; written < bytes; copy++) for (i = 0; i < n && written < bytes; i += 20) {
            text = "Copy " copy " of " word(copy * 7919 + i) ": "
            for (k = i; k < i + 20 && k < n; k++) text = text line[k] " "
            printf "{\"text\": \"%s\"}\n", text
            written += length(text)
        }
    }' "$here/data/pretrain/en_austen.txt" "$here/data/pretrain/en_mobydick.txt" > "$folder/text.jsonl"
ls -l "$folder/text.jsonl"
rm -rf "$folder/run"
/usr/bin/time -v "$lehr" pretrain --data "$folder/text.jsonl" --out "$folder/run" --minutes 0.1 --device cpu \
    --set train.steps=2 --set schedule.warmup_steps=1 --set 'sample.prompts=[]' --set eval.batches_max=2 2> "$folder/time.txt"
grep -E "Maximum resident|Elapsed" "$folder/time.txt"
