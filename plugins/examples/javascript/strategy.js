// After a number of failed attempts, moves the call to the next best target; where none is left, gives
// the last known good answer.
import { target as presentTarget } from 'backstop:strategy/call@0.1.0';
import { find as lastKnownGood } from 'backstop:strategy/last-known-good@0.1.0';
import { write as log } from 'backstop:strategy/log@0.1.0';
import { snapshot } from 'backstop:strategy/targets@0.1.0';

// What the operator may write. The host refuses anything else before it gets here.
const schema = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  additionalProperties: false,
  properties: {
    after: {
      type: 'integer',
      minimum: 1,
      maximum: 100,
      default: 2,
      description: 'Failed attempts before the call leaves its target.',
    },
  },
};

let after = 2;

export const policy = {
  metadata: () => ({
    name: 'next-best',
    version: '0.1.0',
    description: 'Moves a call that keeps failing to the next best target, or to the last known good answer.',
    level: 'service',
    defaultPriority: 90,
    kinds: ['ConnectionError', 'TimeoutError', 'ServiceUnavailable'],
    operations: [],
    capabilities: [],
    configSchema: JSON.stringify(schema),
    extra: [],
  }),

  // To refuse a configuration, throw a string that says what is wrong with it.
  configure(config) {
    after = JSON.parse(config).after ?? 2;
  },

  condition: (failure) => failure.attempts >= after,

  action({ attempts }) {
    // The list is sorted: best priority first.
    const next = snapshot().find(({ standing }) =>
      standing.healthy && standing.admitted && !standing.tried && !standing.present);
    if (next) {
      log('info', `${presentTarget()} is left after ${attempts} attempts`);
      return {
        action: { tag: 'switch-target', val: { target: next.name } },
        reason: `${next.name} is the next best after ${attempts} attempts`,
      };
    }
    const known = lastKnownGood();
    if (known) {
      return {
        action: { tag: 'answer', val: { source: 'last-known-good' } },
        // Times are whole milliseconds, as BigInt.
        reason: `no target is left, an answer of ${known.age / 1000n} s ago is`,
      };
    }
    return { action: { tag: 'decline' }, reason: '' };
  },
};
