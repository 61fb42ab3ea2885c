// Says of each JPEG or PNG on the command line whether its C2PA manifest holds, as a JSON list.
import { readFile } from 'node:fs/promises';
import { JPEG, PNG } from '@trustnxt/c2pa-ts/asset';
import { SuperBox } from '@trustnxt/c2pa-ts/jumbf';
import { ManifestStore } from '@trustnxt/c2pa-ts/manifest';

const verdicts = [];
for (const path of process.argv.slice(2)) {
  const content = await readFile(path);
  const asset = JPEG.canRead(content) ? new JPEG(content) : new PNG(content);
  const store = ManifestStore.read(SuperBox.fromBuffer(asset.getManifestJUMBF()));
  verdicts.push((await store.validate(asset)).isValid);
}
console.log(JSON.stringify(verdicts));
