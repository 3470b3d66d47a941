// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit ? count.toFixed(1) : count} ${UNITS[unit]}`;
}

export function seconds(span) {
  if (span < 1) return `${Math.round(span * 1000)} ms`;
  if (span < 60) return `${span.toFixed(1)} s`;
  const whole = Math.floor(span);
  if (span < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function clock(moment) {
  return new Date(moment * 1000).toLocaleTimeString();
}
