// Tones, spoken and recognised, for the voice tests on Node.
import { rtc } from '../../bindings/node/dist/src/livekit.js';

export const RATE = 48000;
const BLOCK = RATE / 100;
export const WINDOW = 8192; // samples, a power of two
const SILENT = 300;

/** The frequency that is loudest, in Hz; null for silence. */
export function toneOf(samples) {
  if (!samples.some((s) => Math.abs(s) > SILENT)) return null;
  const re = Float64Array.from(samples, (s, i) => s * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW)));
  const im = new Float64Array(WINDOW);
  fft(re, im);
  let best = 0;
  for (let i = 1; i < WINDOW / 2; i++) if (Math.hypot(re[i], im[i]) > Math.hypot(re[best], im[best])) best = i;
  return (best * RATE) / WINDOW;
}

/** In place, by Cooley and Tukey. */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j], im[i], im[j]] = [re[j], re[i], im[j], im[i]];
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let start = 0; start < n; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const angle = (-2 * Math.PI * k) / size;
        const [a, b] = [start + k, start + k + size / 2];
        const x = re[b] * Math.cos(angle) - im[b] * Math.sin(angle);
        const y = re[b] * Math.sin(angle) + im[b] * Math.cos(angle);
        [re[b], im[b], re[a], im[a]] = [re[a] - x, im[a] - y, re[a] + x, im[a] + y];
      }
    }
  }
}

/** Speaks a tone for ever. */
export async function hum(tone, source) {
  for (let at = 0; ; at += BLOCK) {
    const wave = Int16Array.from({ length: BLOCK }, (_, i) => 10000 * Math.sin((2 * Math.PI * tone * (at + i)) / RATE));
    await source.captureFrame(new rtc.AudioFrame(wave, RATE, 1, BLOCK));
  }
}
