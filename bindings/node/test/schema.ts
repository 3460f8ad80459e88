// What really passes, held against schema/: event.<name>.json and result.<function>.json, where
// <function> is without "mrtc_".

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Ajv2020 } from 'ajv/dist/2020.js';

const FOLDER = fileURLToPath(new URL('../../../../schema/', import.meta.url));

const ajv = new Ajv2020({ allErrors: true, strict: false, validateFormats: false });
const ids = new Map<string, string>();
for (const file of readdirSync(FOLDER)) {
  if (!file.endsWith('.json')) continue;
  const schema = JSON.parse(readFileSync(FOLDER + file, 'utf8')) as { $id?: string };
  const id = schema.$id ?? file;
  ajv.addSchema(schema, id);
  ids.set(file.replace(/\.json$/, ''), id);
}

/** Names of the schemas that something was held against. */
export const applied = new Set<string>();

export function checkShape(name: string, value: unknown): void {
  const id = ids.get(name);
  const validate = id === undefined ? undefined : ajv.getSchema(id);
  assert.ok(validate, `schema/${name}.json is missing`);
  applied.add(name);
  assert.ok(validate(value), `${name}: ${ajv.errorsText(validate.errors)}\n${JSON.stringify(value, null, 1)}`);
}

export function checkEvent(event: { event: string }): void {
  checkShape(`event.${event.event}`, event);
}
