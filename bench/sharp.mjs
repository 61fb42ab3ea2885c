// The reference of B4: `node sharp.mjs <sharp's folder> <picture> <folder for results> <times>`.
// Decodes once per picture, writes the variants of the presets of assets, prints milliseconds of CPU per picture as JSON.
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, picture, folder, times] = process.argv.slice(2);
const sharp = createRequire(join(modules, "package.json"))("sharp");
sharp.concurrency(1); // one core, so that no thread burns CPU time waiting for another
sharp.cache(false);

async function variants() {
  const { data, info } = await sharp(picture)
    .autoOrient()
    .resize(1600, 1600, { fit: "inside", withoutEnlargement: true })
    .raw()
    .toBuffer({ resolveWithObject: true });
  const sized = (side) =>
    sharp(data, { raw: { width: info.width, height: info.height, channels: info.channels } }).resize(side, side, {
      fit: "inside",
      withoutEnlargement: true,
    });
  for (const side of [256, 800, 1600]) {
    await sized(side).webp({ quality: 80, effort: 4 }).toFile(join(folder, `${side}.webp`));
  }
  await sized(800)
    .avif({ quality: 60, effort: 3, bitdepth: 8, chromaSubsampling: "4:2:0" })
    .toFile(join(folder, "800.avif"));
}

await variants(); // libraries are loaded on first use
const before = process.cpuUsage();
for (let i = 0; i < Number(times); i++) await variants();
const { user, system } = process.cpuUsage(before);
console.log(JSON.stringify((user + system) / 1000 / Number(times)));
