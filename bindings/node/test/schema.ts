// What really passes, held against schema/*.json.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Ajv2020 } from 'ajv/dist/2020.js';

const FOLDER = fileURLToPath(new URL('../../../../schema/', import.meta.url));

const ajv = new Ajv2020({ allErrors: true, strict: false, validateFormats: false });
const ids = new Map<string, string>();
if (existsSync(FOLDER)) {
  for (const file of readdirSync(FOLDER).filter((name) => name.endsWith('.json'))) {
    const schema = JSON.parse(readFileSync(FOLDER + file, 'utf8')) as { $id?: string };
    const id = schema.$id ?? file;
    ajv.addSchema(schema, id);
    ids.set(file.replace(/(\.schema)?\.json$/, ''), id);
  }
}

/** Names of the schemas that there are. */
export const schemas: ReadonlySet<string> = new Set(ids.keys());

export function checkShape(name: string, value: unknown): void {
  const id = ids.get(name);
  assert.ok(id, `schema/${name}.json does not exist`);
  const validate = ajv.getSchema(id);
  assert.ok(validate, name);
  assert.ok(validate(value), `${name}: ${ajv.errorsText(validate.errors)}\n${JSON.stringify(value, null, 1)}`);
}

export function checkEvent(event: { event: string }): void {
  checkShape('event', event);
}
