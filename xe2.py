import re
def edit(p,*subs):
    s=open(p).read()
    for a,b in subs:
        assert a in s,(p,a); s=s.replace(a,b)
    open(p,'w').write(s)
edit('x82.txt',('''                key = ("", "") if suffix == TRUE_SOUND else (row, suffix.removesuffix("row"))
''','''                own = (row, "" if suffix == "row" else suffix)
                key = ("", "") if suffix == TRUE_SOUND else own
'''))
edit('params.yaml',('''  general_clips: 16 # of videos, and of captions without video; scores of sets need them
''','''  general_clips: 16 # of videos, and of captions without video; scores of sets need them
  listening: # test clips whose sounds are kept, for the listening page and the spectrograms: the densest by their true notes, each of another work where there are enough; scales do not qualify
    {piano: 6, foley: 3, t2a: 3, min_attacks: 20, max_stepwise: 0.5, works: ["*"], without: [schubert/Lindenbaum, schumann_clara/opus17/*]} # without: encodings that state terms of their own (LICENSES.md)
'''),('''  examples: 3 # clips in the figures
''','''  examples: 3 # clips in the figures, the first of `evaluate.listening`
  ratings: reports/ratings # folder of listeners' files from the listening page; without them MOS is "not run"
'''))
edit('profiles/smoke.yaml',('''  general_clips: 2
''','''  general_clips: 2
  listening: {piano: 2, foley: 2, t2a: 2, min_attacks: 1, max_stepwise: 1.0} # two clips, and one may be a scale
'''))
s=open('dvc.yaml').read()
assert s.count('      - report.examples\n')==3
s=s.replace('      - report.examples\n','      - evaluate.listening\n')
s=s.replace('''      - reports/figures: {cache: false}
    metrics:
      - reports/stages/report.json''','''      - reports/figures: {cache: false}
      - reports/listen: {cache: false}
    metrics:
      - reports/stages/report.json''')
s=s.replace('''      - reports/nuisance.json
      - models/evaluate/read/rows''','''      - reports/nuisance.json
      - cop_repro/evaluation/listening.html
      - models/evaluate/read/rows''')
open('dvc.yaml','w').write(s)
edit('cop_repro/parameters.py',('"evaluate": "sample clips touches general_clips workers variants"','"evaluate": "sample clips touches general_clips listening workers variants"'),
 ('"report": "paper tables real seeds nuisance ablation sampling examples"','"report": "paper tables real seeds nuisance ablation sampling examples ratings"'),
 ('''    "evaluate.sample": SAMPLE,
''','''    "evaluate.sample": SAMPLE,
    "evaluate.listening": "evaluation.evaluate.ListeningRule",
'''))
import json
def nb(p,**cells):
    d=json.load(open(p))
    for c in d['cells']:
        for a,b in cells.get(c['id'],()):
            t=''.join(c['source']); assert a in t,(p,a); t=t.replace(a,b); c['source']=t.splitlines(keepends=True)
    json.dump(d,open(p,'w'),indent=1,ensure_ascii=False); open(p,'a').write('\n')
nb('nbs/stages/evaluate.ipynb',eva00003=[('    ROW_TASKS,\n    RowEntry,\n','    ROW_TASKS,\n    ListeningRule,\n    RowEntry,\n    kept_clips,\n')],
 eva00005=[('''save_scores(
    stage.path("models", "evaluate", item, "rows"), scored, stage.params["report"]["examples"], sets
)''','''rule = stage.config(ListeningRule, "listening")
kept = {name: kept_clips(store, places, rule) for name, (store, places) in chosen.items()}
save_scores(stage.path("models", "evaluate", item, "rows"), scored, kept, sets)''')])
