// Runs the particles of the page, in a worker where there is one: small batches, so that newer settings interrupt.
import { caseOf, recordedSteps } from "./engine.js";
import { MeanLoss, modelsOf, simulate } from "./particles.js";

const BATCH = 250;
export const SHOWN = 250;
export const PATHS = 2000;
export const FRAMES = 160;

/**
 * Simulate all models of `request.settings`, and post {id, paths, models} after the first batch and at the end. Every
 * model has the mean loss, its standard error and, after the first batch, the positions (record, coordinate, path).
 */
export async function runParticles(request, post, isStale) {
  const { id, settings } = request;
  const c = caseOf(settings);
  const at = recordedSteps(settings.steps, FRAMES);
  const models = modelsOf(c).map((name) => ({ name, loss: new MeanLoss(at.length) }));
  const first = {};
  for (let done = 0; done < PATHS; done += BATCH) {
    for (const { name, loss } of models) {
      const shown = done === 0 ? new Float32Array(at.length * c.d * SHOWN) : null;
      simulate(c, name, BATCH, request.seed + done, at, settings.substeps, (r, x, count) => {
        loss.add(c, r, x, count);
        if (shown)
          for (let i = 0; i < c.d; i++)
            for (let j = 0; j < SHOWN; j++) shown[(r * c.d + i) * SHOWN + j] = x[i * count + j];
      });
      loss.paths += BATCH;
      if (shown) first[name] = shown;
      await new Promise((resume) => setTimeout(resume));
      if (isStale(id)) return;
    }
    if (done === 0 || (done / BATCH) % 3 === 1 || done + BATCH >= PATHS)
      post({
        id,
        steps: at,
        paths: done + BATCH,
        models: models.map(({ name, loss }) => ({ name, mean: loss.mean, error: loss.error })),
        positions: done === 0 ? first : null,
      });
  }
}

if (typeof WorkerGlobalScope !== "undefined" && typeof self !== "undefined" && self instanceof WorkerGlobalScope) {
  let newest = 0;
  self.onmessage = ({ data }) => {
    newest = data.id;
    runParticles(data, (message) => self.postMessage(message), (id) => id !== newest);
  };
}
