p='x82.txt'; s=open(p).read()
def sub(a,b,n=1):
    global s
    assert s.count(a)==n,(a,s.count(a)); s=s.replace(a,b)
sub('''predicts, scores, and keeps a few examples for the figures.''','''predicts, scores, and keeps the sounds of a few clips for ears and figures.''')
sub('''from dataclasses import asdict, dataclass, field
from pathlib import Path
''','''from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
''')
i=s.index('#%%% markdown 82a00013')
new='''#%%% markdown 82b00001
## The clips that are listened to
Sounds of a few clips are kept for the listening page and the spectrograms. Which ones is a rule
about the true notes, written in `evaluate.listening`, so that no result can influence the choice: a
clip qualifies if it is dense enough and no scale, and each work offers its densest clips first.
Scales move by seconds almost alone; music does not. Clips without notes take turns by label.
#%%% code 82b00002
#| export
CHORD_S = 0.05  # notes struck within this time of each other are one attack


@dataclass(frozen=True)
class ListeningRule:
    "Which test clips are kept as sounds."

    piano: int = 6  # clips, of as many works as there are
    foley: int = 3  # clips, of as many labels as there are
    t2a: int = 3  # captions, of as many labels as there are
    min_attacks: int = 20  # of a clip of the piano; a chord counts once
    max_stepwise: float = 0.5  # fraction of successive notes a second apart; a scale has 1
    works: tuple[str, ...] = ("*",)  # patterns, one of which a work must match
    without: tuple[str, ...] = ()  # patterns that it must not match


def num_attacks(
    notes: Notes,
) -> int:
    "Struck notes and chords of a performance."
    count, last = 0, -np.inf
    for onset in np.sort(notes.onsets_s):
        if onset - last > CHORD_S:
            count, last = count + 1, onset
    return count


def stepwise(
    notes: Notes,
) -> float:  # 0 to 1
    "Fraction of successive notes that are one or two semitones apart."
    order = np.lexsort((notes.pitches, notes.onsets_s))
    steps = np.abs(np.diff(notes.pitches[order].astype(int)))
    return float(np.isin(steps, (1, 2)).mean()) if len(steps) else 0.0


def _turns(names: Sequence[str]) -> list[int]:
    "How often each name has occurred before."
    return [list(names[:i]).count(name) for i, name in enumerate(names)]


def choose_music(
    notes: Mapping[str, Notes],  # clip -> its true notes
    works: Mapping[str, str],  # clip -> its work
    rule: ListeningRule,
) -> list[str]:  # clips
    "The densest clips that qualify, of as many works as possible."

    def qualifies(clip: str) -> bool:
        wanted, refused = (
            any(fnmatchcase(works[clip], pattern) for pattern in patterns)
            for patterns in (rule.works, rule.without)
        )
        dense = num_attacks(notes[clip]) >= rule.min_attacks
        return wanted and not refused and dense and stepwise(notes[clip]) <= rule.max_stepwise

    found = sorted(filter(qualifies, notes), key=lambda clip: (-num_attacks(notes[clip]), clip))
    turn = dict(zip(found, _turns([works[clip] for clip in found])))
    return sorted(found, key=turn.get)


def kept_clips(
    store: Store,
    places: Sequence[int],  # test clips
    rule: ListeningRule,
) -> dict[str, np.ndarray]:  # clip -> its true sound
    "The clips of a store whose sounds are kept, as the rule orders them."
    ids, kind = store.values("clip_id", places), store.folder.name
    if kind == "piano":
        notes = {clip: store_clip(store, int(r)).notes for clip, r in zip(ids, places)}
        order = choose_music(notes, dict(zip(ids, store.values("work_id", places))), rule)
    else:
        order = [ids[i] for i in np.argsort(_turns(store.values("label", places)), kind="stable")]
    count = getattr(rule, kind)
    if len(order) < count:
        raise ParamsError(
            f"evaluate.listening asks for {count} {kind} clips, and {len(order)} of {len(ids)} "
            "test clips qualify: ask for fewer, or relax min_attacks, max_stepwise or works"
        )
    row_of = dict(zip(ids, places))
    return {clip: store_wav(store, int(row_of[clip])) for clip in order[:count]}
#%%% code 82b00003
def played(pitches, gap_s, chord=1):
    "A line at an even pace, each note doubled in octaves if it is a chord."
    onsets = np.repeat(gap_s * np.arange(len(pitches)), chord)
    heights = np.concatenate([[p + 12 * k for k in range(chord)] for p in pitches])
    return make_notes(heights, onsets, onsets + gap_s / 2, np.full(len(onsets), 64))


scale = played([60, 62, 64, 65, 67, 69, 71, 72] * 4, 0.25)
waltz = played([60, 64, 67] * 9, 0.3, chord=2)
tune, sparse = played([60, 67, 64, 72] * 6, 0.4), played([60, 67], 4.0)
offered = {"s": scale, "w1": waltz, "w2": waltz, "t": tune, "few": sparse}
choose_music(offered, {"s": "s", "w1": "w", "w2": "w", "t": "t", "few": "f"}, ListeningRule())
#%%% code 82b00004
assert num_attacks(waltz) == 27
assert stepwise(played([60, 62, 64, 65], 0.5)) == 1
assert stepwise(waltz) == 0
assert _turns(list("aabab")) == [0, 1, 0, 2, 1]
'''
s=s[:i]+new+s[i:]
a=s.index('def _save_examples('); b=s.index('def row_folders(')
s=s[:a]+'''def _save_sounds(folder: Path, entries: Sequence[Mapping], clips: Sequence[str]) -> bool:
    "Sounds of some clips, and the list of these clips; whether there is any."
    heard = [s for s in entries if s["wav"] is not None and s["clip_id"] in clips]
    for s in heard:
        name = f"{clips.index(s['clip_id'])}-{s['suffix'] or 'row'}.flac"
        soundfile.write(folder / name, s["wav"], RATES.sample_rate)
    write_json(folder / "kept.json", clips if heard else [])
    return bool(heard)


def save_scores(
    folder: Path,  # made anew, one folder a row inside
    scored: Mapping[str, Sequence[Mapping]],  # of `score_rows`
    kept: Mapping[str, Mapping[str, np.ndarray]],  # row -> clip -> true sound, of `kept_clips`
    sets: Mapping[str, Sequence[Mapping]] | None = None,  # of `score_sets`
) -> None:
    "Scores as JSON, and the sounds of the kept clips as FLAC, the true ones once; all or nothing."
    with atomic_folder(folder) as temporary:
        written: set[str] = set()
        for name, entries in scored.items():
            place, clips = temporary / name, list(kept[name])
            write_json(place / "scores.json", [_plain(s) for s in entries])
            write_json(place / "sets.json", (sets or {}).get(name, []))
            if not _save_sounds(place, entries, clips):
                continue
            for i, clip in enumerate(clips):
                if clip not in written:
                    wav = kept[name][clip]
                    soundfile.write(place / f"{i}-{TRUE_SOUND}.flac", wav, RATES.sample_rate)
            written.update(clips)


'''+s[b:]
sub('''def _plain(entry: Mapping) -> dict:''','''TRUE_SOUND = "true_sound"  # name of the file that holds a clip's own sound


def _plain(entry: Mapping) -> dict:''')
a=s.index('def example_sounds('); b=s.index('#%%% markdown 82a00019')
s=s[:a]+'''def kept_list(
    folder: Path,  # of one row
) -> list[str]:  # clips
    "Clips whose sounds a row keeps, in the order of the rule."
    return json.loads((folder / "kept.json").read_text())


def kept_sounds(
    folders: Mapping[str, Path],  # of `row_folders`
) -> dict[str, dict[tuple[str, str], Path]]:  # clip -> (row, suffix) -> FLAC; ("", "") is the truth
    "Every kept sound, by clip."
    made: dict[str, dict[tuple[str, str], Path]] = {}
    for row, folder in folders.items():
        for i, clip in enumerate(kept_list(folder)):
            for path in sorted(folder.glob(f"{i}-*.flac")):
                suffix = path.stem.partition("-")[2]
                key = ("", "") if suffix == TRUE_SOUND else (row, suffix.removesuffix("row"))
                made.setdefault(clip, {}).setdefault(key, path)
    return made


def read_kept(
    path: Path,  # of `kept_sounds`
) -> np.ndarray:  # float (s,)
    "One kept sound."
    return soundfile.read(path, dtype="float32")[0]


def example_sounds(
    folders: Mapping[str, Path],  # of `row_folders`
    rows: Sequence[str],  # which rows to show, after the truth
    count: int,  # clips
) -> dict[str, dict[str, np.ndarray]]:  # clip -> title -> sound
    "Sounds of the first kept clips of the piano: the truth, then the rows."
    sounds, shown = kept_sounds(folders), kept_list(folders["controls"])[:count]
    return {
        clip: {
            "true sound": read_kept(sounds[clip]["", ""]),
            **{row: read_kept(sounds[clip][row, ""]) for row in rows},
        }
        for clip in shown
    }


def example_notes(
    scored: Mapping[str, Sequence[Mapping]],  # row -> scored clips
    row: str,  # whose notes
    clips: Sequence[str],  # which ones
) -> dict[str, tuple[Notes, Notes]]:  # clip -> true and predicted notes
    "True and predicted notes of some clips."
    truth = [s for s in scored["controls"] if s["suffix"] == "truth"]
    true = {s["clip_id"]: make_notes(*s["notes"]) for s in truth}
    made = {s["clip_id"]: make_notes(*s["notes"]) for s in scored[row]}
    return {clip: (true[clip], made[clip]) for clip in clips}
'''+s[b:]
open(p,'w').write(s)
