"""The style sheet of the page: light and dark, wide and narrow, screen and paper."""

STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfa;--card:#fff;--ink:#1c2126;--soft:#5d6770;--rule:#e2e5e3;
--grid:#e9ecea;--link:#175cd3;--good:#067647;--good-bg:#e3f6ec;--warn:#93540a;--warn-bg:#fdf1dd;
--bad:#b42318;
--bad-bg:#fdeae8;--calm:#3f5163;--calm-bg:#e8eef4;--mark:#fff1b8;
--c0:#2563eb;--c1:#c2700a;--c2:#04855f;--c3:#c026a3;--c4:#7c3aed;--c5:#0e7f9c;--c6:#5a8a0c;--c7:#d03434}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--card:#1b2026;--ink:#e6e9eb;--soft:#9aa5af;
--rule:#2d353d;
--grid:#283038;--link:#84b4ff;--good:#6fd9a4;--good-bg:#143326;--warn:#f5c069;--warn-bg:#3a2c12;
--bad:#ff9d94;
--bad-bg:#431d1a;--calm:#b4c5d6;--calm-bg:#263341;--mark:#55470f;
--c0:#6ea8ff;--c1:#f2ab4c;--c2:#45cf9f;--c3:#f088dc;--c4:#b69cff;--c5:#4fcbe8;--c6:#a9d65a;--c7:#ff8b80}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:0 1.25rem 4rem;max-width:72rem;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .3rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h1 .run{font-weight:400;color:var(--soft)}
h2{font-size:1.25rem;margin:2.8rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--rule);
letter-spacing:-.005em}
blockquote{margin:.2rem 0 .9rem;padding-left:.7rem;border-left:3px solid var(--rule);
overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.5rem 0 .5rem}h4{font-size:.95rem;margin:0 0 .6rem;overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:46rem}ul{padding-left:1.2rem;margin:.4rem 0}li{overflow-wrap:anywhere}
header{padding:2.4rem 0 .4rem}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.note,.missing{color:var(--soft);font-size:.88rem}.missing{font-style:italic}
.command{overflow-wrap:anywhere;max-width:none}
.error{background:var(--bad-bg);color:var(--bad);padding:.7rem .9rem;border-radius:8px;margin:.7rem 0}
.warning{color:var(--warn)}
.badge{display:inline-block;padding:.05rem .55rem;border-radius:99px;
font:600 .78rem/1.5 system-ui,sans-serif;
vertical-align:.12em;white-space:nowrap;background:var(--calm-bg);color:var(--calm)}
.badge.completed,.badge.ran{background:var(--good-bg);color:var(--good)}
.badge.failed{background:var(--bad-bg);color:var(--bad)}
.badge.stopped,.badge.trusted{background:var(--warn-bg);color:var(--warn)}
.badge.not-reached{background:none;border:1px solid var(--rule);color:var(--soft)}
.essence{margin:1.2rem 0 0;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:.35rem 1.1rem}
.essence div{display:grid;grid-template-columns:6.2rem 1fr;gap:.2rem 1rem;padding:.42rem 0;
border-bottom:1px solid var(--rule)}
.essence div:last-child{border:0}.essence dt{font-weight:650;color:var(--soft)}
.essence dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--rule);
margin:1.2rem 0 0}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1.15rem;list-style:none;margin:0;padding:.6rem 0;
font-size:.88rem}
section,.stage{scroll-margin-top:4rem}
.tables{display:flex;flex-wrap:wrap;gap:0 3rem}.tables .scroll{max-width:100%}
.tables table{min-width:0}
.scroll{overflow-x:auto;margin:.8rem 0 1.3rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,26rem)}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding:0 0 .35rem;max-width:46rem}
th{text-align:left;font-weight:600;color:var(--soft);font-size:.82rem;border-bottom:1.5px solid var(--rule);
padding:.3rem 1.4rem .3rem 0;vertical-align:bottom}
td{padding:.36rem 1.4rem .36rem 0;border-bottom:1px solid var(--rule);vertical-align:top;
overflow-wrap:break-word;
max-width:30rem}
tbody tr:last-child td{border-bottom:0}th.num,td.num{text-align:right;white-space:nowrap}
mark{background:var(--mark);color:inherit;padding:0 .25em;border-radius:3px}
.meter{width:9rem;height:.6rem;margin:.42rem 0;background:var(--grid);border-radius:9px;overflow:hidden}
.meter i{display:block;height:100%;background:var(--c0)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1rem;
margin:.8rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:.9rem 1rem .7rem;
break-inside:avoid;min-width:0}
figcaption{display:flex;justify-content:space-between;align-items:baseline;gap:.8rem;font-weight:600;
font-size:.95rem;margin-bottom:.35rem}
.source{font-weight:400;font-size:.8rem;color:var(--soft)}
main>section:first-child h2{border:0;margin-top:1rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:0 0 .35rem;padding:0;
font-size:.82rem;
color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key{display:inline-block;width:1rem;height:0;border-top:3px solid;vertical-align:.28em;margin-right:.4rem}
.key.dashed{border-top:2px dashed}
svg{display:block;width:100%;height:auto;
font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg text{fill:var(--soft);font-variant-numeric:tabular-nums}svg .name{fill:var(--ink)}
svg .value{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
svg .label{font-size:11.5px}.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft);stroke-opacity:.55}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.thin.line{stroke-width:1.2;stroke-opacity:.75}
.dashed.line{stroke-width:1.6;stroke-dasharray:5 4;stroke-linecap:butt}
.whisker{fill:none;stroke:var(--ink);stroke-opacity:.8;stroke-width:1.3}
.line.s0,.dot.s0,.whisker.s0{stroke:var(--c0)}.line.s1,.dot.s1,.whisker.s1{stroke:var(--c1)}
.line.s2,.dot.s2,.whisker.s2{stroke:var(--c2)}.line.s3,.dot.s3,.whisker.s3{stroke:var(--c3)}
.line.s4,.dot.s4,.whisker.s4{stroke:var(--c4)}.line.s5,.dot.s5,.whisker.s5{stroke:var(--c5)}
.line.s6,.dot.s6,.whisker.s6{stroke:var(--c6)}.line.s7,.dot.s7,.whisker.s7{stroke:var(--c7)}
.bar.s0,.dot.s0{fill:var(--c0)}.bar.s1,.dot.s1{fill:var(--c1)}.bar.s2,.dot.s2{fill:var(--c2)}
.bar.s3,.dot.s3{fill:var(--c3)}.bar.s4,.dot.s4{fill:var(--c4)}.bar.s5,.dot.s5{fill:var(--c5)}
.bar.s6,.dot.s6{fill:var(--c6)}.bar.s7,.dot.s7{fill:var(--c7)}.bar{fill-opacity:.82}
.key.s0{color:var(--c0)}.key.s1{color:var(--c1)}.key.s2{color:var(--c2)}.key.s3{color:var(--c3)}
.key.s4{color:var(--c4)}.key.s5{color:var(--c5)}.key.s6{color:var(--c6)}.key.s7{color:var(--c7)}
.wide{grid-column:1/-1}.panels{display:grid;gap:.9rem 1.4rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
.panel-name{margin:.2rem 0;font-size:.8rem}.cells{fill:var(--c0)}.frame{fill:none;stroke:var(--rule)}
svg .tiny{font-size:8.5px}.shade{display:inline-block;width:.8rem;height:.8rem;background:var(--c0);
vertical-align:-.1em}
.card{border:1px solid var(--rule);border-radius:12px;padding:.9rem 1rem 1rem;margin:.8rem 0;
background:var(--card)}
.boxes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.7rem}
.box{background:var(--paper);border:1px solid var(--rule);border-radius:8px;padding:.5rem .7rem .6rem;
min-width:0;
break-inside:avoid}
.box p{margin:.1rem 0 .3rem;overflow-wrap:anywhere}
.batch pre{padding:.45rem 0;border-top:1px dashed var(--rule)}.batch pre:first-of-type{border-top:0}
.batch .trained{background:var(--good-bg);color:var(--good);border-radius:3px;padding:.1em 0}
.batch .context{color:var(--soft)}.batch .cut{background:var(--warn-bg);color:var(--warn);border-radius:3px;
padding:0 .3em;margin-left:.2em}.batch sup{font-size:.7em}
.models span{display:inline-block;font-size:.75rem;font-weight:600;color:var(--calm);
background:var(--calm-bg);border-radius:4px;padding:0 .4rem;margin:0 .15rem .35rem 0}
details{margin:.5rem 0}summary{cursor:pointer;padding:.3rem 0}summary .note{margin-left:.2rem}
.stage>details{border:1px solid var(--rule);border-radius:12px;padding:.25rem 1rem;background:var(--card)}
.stage>details[open]{padding-bottom:.8rem}
.stage:target>details{outline:2px solid var(--link)}
@media (max-width:560px){body{padding:0 .9rem 3rem;font-size:15px}h1{font-size:1.4rem}
header{padding-top:1.3rem}
nav{position:static}.essence div{grid-template-columns:1fr;gap:0}svg text{font-size:14px}
svg .label{font-size:13px}
figure{padding:.7rem .6rem .5rem}th,td{padding-right:.9rem}}
@media print{:root{--paper:#fff;--card:#fff}body{max-width:none;padding:0;font-size:11px}nav{display:none}
.card,figure,.box,tr{break-inside:avoid}h2,h3{break-after:avoid}
.tables{display:flex;flex-wrap:wrap;gap:0 3rem}.tables .scroll{max-width:100%}
.tables table{min-width:0}
.scroll{overflow:visible}
details::details-content{content-visibility:visible;height:auto}.charts{grid-template-columns:1fr 1fr}}
"""
