'use strict';

// The page of a service: asks it for labels, and shows which stitch answers and how the last seconds went.

const MOST_AT_ONCE = 64;  // requests of the load slider that may be under way
const byId = (id) => document.getElementById(id);
const state = { models: [], picture: null, type: '', underWay: 0, owed: 0, moment: 0, edited: false };

function make(name, attributes = {}, text = '') {
  const svg = ['circle', 'line', 'text'].includes(name);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function model() {
  return state.models.find((m) => m.name === byId('model').value) || state.models[0];
}

function headers() {
  const key = byId('key').value;
  return key ? { Authorization: 'Bearer ' + key } : {};
}

async function get(path) {
  const reply = await fetch(path, { headers: headers() });
  if (reply.status === 401) throw new Error('this service needs a key');
  return reply.json();
}

// The sliders. Deadline: 1 ms to 10 s on a logarithmic scale. Budget: the costs of the stitches, then no limit.

function deadline() {
  return Number((10 ** (byId('deadline').value / 25)).toPrecision(2));
}

function setDeadline(ms) {
  byId('deadline').value = 25 * Math.log10(Math.max(1, ms));
}

function costs() {
  const known = model() ? model().choices.map((c) => stitch(c.stitch).flops || 0) : [];
  return [...new Set(known)].sort((a, b) => a - b);
}

function budget() {
  return costs()[byId('budget').value];  // undefined past the last one: no limit
}

function showSliders() {
  byId('deadline-text').textContent = deadline() + ' ms';
  const flops = budget();
  byId('budget-text').textContent = flops === undefined ? 'no limit' : (flops / 1e6).toPrecision(3) + ' MFLOPs';
  byId('budget').setAttribute('aria-valuetext', byId('budget-text').textContent);
  byId('deadline').setAttribute('aria-valuetext', byId('deadline-text').textContent);
  const rate = Number(byId('load').value);
  byId('load-text').textContent = rate ? rate + ' times a second' : 'once';
  byId('load').setAttribute('aria-valuetext', byId('load-text').textContent);
  const line = byId('limit');
  line.toggleAttribute('hidden', flops === undefined);
  if (flops !== undefined && scale.x) for (const end of ['x1', 'x2']) line.setAttribute(end, scale.x(flops));
}

// The chart.

const scale = { x: null, y: null };

function stitch(id) {
  return model().stitches[id];
}

function drawChart() {
  const net = model();
  const flops = net.stitches.map((s) => Math.log(Math.max(1, s.flops || 1)));
  const known = net.stitches.filter((s) => s.top1 !== undefined).map((s) => s.top1);
  const [left, right] = [Math.min(...flops), Math.max(...flops)];
  const [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  scale.x = (f) => 60 + (560 * (Math.log(Math.max(1, f || 1)) - left)) / (right - left || 1);
  scale.y = (t) => (t === undefined || t === null ? 167 : 310 - (280 * (t - low)) / (high - low || 1));
  const chosen = new Set(net.choices.map((c) => c.stitch));
  byId('points').replaceChildren(
    ...net.stitches.map((s) =>
      make('circle', { cx: scale.x(s.flops), cy: scale.y(s.top1), r: chosen.has(s.stitch) ? 5 : 3,
                       class: chosen.has(s.stitch) ? 'choice' : '' })));
  byId('frontier').setAttribute('points', net.frontier.map((i) => scale.x(stitch(i).flops) + ',' + scale.y(stitch(i).top1)).join(' '));
  drawAxes(left, right, low, high, known.length > 0);
  byId('rows').replaceChildren(...net.choices.map((c) => rowOf(c)));
  byId('budget').max = costs().length;
  byId('budget').value = costs().length;
  byId('caption').textContent = net.evaluated
    ? net.stitches.length + ' stitches; blue ones answer, as the load allows. A ring marks the last one that did.'
    : 'This net was never evaluated, so no accuracy is known: only its anchors answer.';
}

function drawAxes(left, right, low, high, known) {
  const axes = [make('line', { x1: 50, y1: 320, x2: 630, y2: 320 }), make('line', { x1: 50, y1: 20, x2: 50, y2: 320 })];
  for (const share of [0, 0.5, 1]) {
    const flops = Math.exp(left + share * (right - left));
    axes.push(make('text', { x: 60 + 560 * share, y: 338, 'text-anchor': 'middle' }, (flops / 1e6).toPrecision(3)));
    if (known) axes.push(make('text', { x: 45, y: 314 - 280 * share, 'text-anchor': 'end' }, (low + share * (high - low)).toFixed(1)));
  }
  axes.push(make('text', { x: 340, y: 355, 'text-anchor': 'middle' }, 'MFLOPs per image'));
  axes.push(make('text', { x: 55, y: 14 }, 'top-1 in %'));
  byId('axes').replaceChildren(...axes);
}

function rowOf(choice) {
  const record = stitch(choice.stitch);
  const top1 = record.top1 === undefined ? '–' : record.top1.toFixed(2);
  const row = make('tr');
  for (const cell of [record.stitch, record.legs, ((record.flops || 0) / 1e6).toPrecision(3), top1, choice.batch_ms[0].toPrecision(3)])
    row.append(make('td', {}, cell));
  return row;
}

function showInUse(id) {
  const ring = byId('use');
  ring.toggleAttribute('hidden', id === null || id === undefined);
  if (id === null || id === undefined) return;
  ring.setAttribute('cx', scale.x(stitch(id).flops));
  ring.setAttribute('cy', scale.y(stitch(id).top1));
  byId('chart-title').textContent = 'Accuracy of the stitches over their cost; stitch ' + id + ' answered last';
}

// Asking.

async function ask(quiet = false) {
  if (!state.picture) return;
  const query = new URLSearchParams({ model: model().name, deadline_ms: deadline() });
  if (budget() !== undefined) query.set('flops', budget());
  state.underWay += 1;
  try {
    const reply = await fetch('/v1/predict?' + query, {
      method: 'POST', body: state.picture, headers: { 'Content-Type': state.type, ...headers() } });
    const found = await reply.json();
    if (reply.ok) showAnswer(found, quiet);
    else showRefusal(reply.status, found.error, quiet);
  } catch (error) {
    byId('refusal').textContent = 'The service cannot be reached.';
  } finally {
    state.underWay -= 1;
  }
}

function showRefusal(status, error, quiet) {
  byId('refusal').textContent = 'Refused (' + status + '): ' + error.message;
  if (!quiet) byId('answer').replaceChildren();
}

function showAnswer(found, quiet) {
  const [result] = found.results;
  showInUse(result.stitch);
  if (quiet) return;
  byId('refusal').textContent = '';
  const best = result.predictions[0];
  const text = best.label + ' with ' + (100 * best.probability).toFixed(1) + ' %, by stitch ' + result.stitch + ' (' + result.legs + ') in '
    + found.total_ms.toFixed(1) + ' ms: ' + result.waited_ms.toFixed(1) + ' waited, ' + result.computed_ms.toFixed(1) + ' computed'
    + (found.in_time ? '.' : ', later than its deadline.');
  const list = make('ol');
  for (const p of result.predictions) {
    const item = make('li');
    const percent = (100 * p.probability).toFixed(1) + ' %';
    item.append(make('span', {}, p.label), make('span', {}, percent),
                make('meter', { min: 0, max: 1, value: p.probability, 'aria-label': p.label }, percent));
    list.append(item);
  }
  byId('answer').replaceChildren(make('p', {}, text), list);
}

function usePicture(blob, type) {
  state.picture = blob;
  state.type = type || blob.type || 'application/octet-stream';
  const preview = byId('preview');
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  preview.alt = 'the picture that is sent';
  preview.hidden = false;
  byId('send').disabled = false;
  ask();
}

function useTestPattern() {
  const canvas = make('canvas', { width: 224, height: 224 });
  const pen = canvas.getContext('2d');
  const gradient = pen.createLinearGradient(0, 0, 224, 224);
  gradient.addColorStop(0, '#204080');
  gradient.addColorStop(1, '#f0c040');
  pen.fillStyle = gradient;
  pen.fillRect(0, 0, 224, 224);
  pen.fillStyle = '#ffffff';
  pen.beginPath();
  pen.arc(112, 112, 60, 0, 7);
  pen.fill();
  canvas.toBlob((blob) => usePicture(blob, 'image/png'), 'image/png');
}

function listen() {
  byId('file').addEventListener('change', (event) => event.target.files[0] && usePicture(event.target.files[0]));
  byId('pattern').addEventListener('click', useTestPattern);
  byId('send').addEventListener('click', () => ask());
  byId('key').addEventListener('change', () => connect());
  byId('model').addEventListener('change', () => { drawChart(); showSliders(); });
  for (const id of ['deadline', 'budget', 'load']) byId(id).addEventListener('input', () => { state.edited = true; showSliders(); });
  for (const id of ['deadline', 'budget']) byId(id).addEventListener('change', () => ask());
  document.addEventListener('paste', (event) => {
    const file = [...event.clipboardData.files].find((f) => f.type.startsWith('image/'));
    if (file) usePicture(file);
  });
  const drop = byId('drop');
  drop.addEventListener('dragover', (event) => { event.preventDefault(); drop.classList.add('over'); });
  drop.addEventListener('dragleave', () => drop.classList.remove('over'));
  drop.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    if (event.dataTransfer.files[0]) usePicture(event.dataTransfer.files[0]);
  });
}

// The live part: the load slider sends the picture at its rate, and the numbers follow.

function sendLoad() {
  const now = performance.now();
  const rate = document.hidden || !state.picture ? 0 : Number(byId('load').value);
  state.owed = rate ? Math.min(MOST_AT_ONCE, state.owed + (rate * (now - state.moment)) / 1000) : 0;
  state.moment = now;
  for (; state.owed >= 1 && state.underWay < MOST_AT_ONCE; state.owed -= 1) ask(true);
}

function number(value, digits, unit) {
  return value === null || value === undefined ? '–' : value.toFixed(digits) + unit;
}

async function follow() {
  try {
    const found = await get('/v1/status');
    byId('state').textContent = found.state;
    if (found.ready && (!model() || !model().choices.length)) await connect();
    const live = model() && found.models[model().name];
    if (live) {
      byId('attainment').textContent = number(live.attainment, 1, ' %');
      byId('rate').textContent = number(live.rate, 1, '');
      byId('waiting').textContent = String(found.waiting);
      byId('p50').textContent = number(live.p50_ms, 1, ' ms');
      byId('p99').textContent = number(live.p99_ms, 1, ' ms');
      byId('top1').textContent = number(live.top1, 2, ' %');
      if (live.last_stitch !== null) showInUse(live.last_stitch);
    }
    if (!state.edited) { setDeadline(found.deadline_ms); showSliders(); state.edited = true; }
  } catch (error) {
    byId('state').textContent = error instanceof TypeError ? 'not reachable' : error.message;
  }
  setTimeout(follow, document.hidden ? 5000 : 500);
}

async function connect() {
  const found = await get('/v1/stitches').catch(() => null);
  if (!found) return;
  state.models = found.models;
  const chosen = byId('model').value;
  byId('model').replaceChildren(...state.models.map((m) => make('option', { value: m.name }, m.name)));
  if (state.models.some((m) => m.name === chosen)) byId('model').value = chosen;
  drawChart();
  showSliders();
}

listen();
connect().then(follow);
setInterval(sendLoad, 20);
