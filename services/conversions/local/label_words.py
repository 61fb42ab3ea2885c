"""The words that labels use, in English, German, French, Italian and Spanish, without accents and
in lower case, each with what it means."""

import unicodedata
from collections.abc import Iterator, Mapping


def fold(text: str) -> str:
    """Returns the text in lower case, without accents, with single spaces."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).split())


def _meanings(table: str) -> Iterator[tuple[str, str]]:
    for line in table.strip().splitlines():
        name, words = line.split(": ")
        yield fold(name), name
        yield from ((word.strip(), name) for word in words.split(","))


FIBRES: Mapping[str, str] = dict(
    _meanings("""
cotton: baumwolle, coton, cotone, algodon
virgin wool: schurwolle, laine vierge, lana vergine, lana virgen
merino wool: merino, merinowolle, laine merinos, lana merinos, lana merino
wool: wolle, laine, lana
cashmere: kaschmir, cachemire, cachemir, cachemira
mohair: moher
alpaca: alpaka, alpaga
angora: angorawolle
linen: flax, leinen, flachs, lin, lino
silk: seide, soie, seta, seda
hemp: hanf, chanvre, canapa, canamo
jute: yute, iuta
ramie: ramio
bamboo: bambus, bambou, bambu
polyester: poliestere, poliester
polyamide: nylon, polyamid, poliammide, poliammidica, poliamida
elastane: spandex, lycra, elastan, elasthan, elasthanne, elastano
viscose: rayon, viskose, viscosa
acrylic: polyacrylic, polyacryl, acryl, acrylique, acrilico, acrilica
modacrylic: modacryl, modacrylique, modacrilica
modal: modale
lyocell: tencel, liocel
cupro: cupra
acetate: acetat, acetato
triacetate: triacetat, triacetato
polyurethane: polyurethan, poliuretano, poliuretanica
polypropylene: polypropylen, polipropilene, polipropileno
polyethylene: polyethylen, polietilene, polietileno
leather: leder, cuir, pelle, cuoio, cuero, piel
down: daunen, daune, duvet, piumino, plumon
feathers: feather, federn, plumes, piume, plumas
other fibres: other fibers, andere fasern, sonstige fasern, autres fibres, altre fibre, otras fibras
""")
)

QUALITIES: Mapping[str, str] = dict(
    _meanings("""
organic: bio, biologique, biologico, organico, ecologico
recycled: recyceltes, recycelte, recycelter, recycle, riciclato, riciclata, reciclado, reciclada
""")
)

PARTS: Mapping[str, str] = dict(
    _meanings("""
shell: outer fabric, outer shell, main fabric, outer, oberstoff, obermaterial, aussenmaterial, \
tissu principal, tissu exterieur, exterieur, esterno, tessuto esterno, exterior, tejido principal
lining: futter, innenfutter, doublure, fodera, forro
filling: padding, fullung, wattierung, rembourrage, garnissage, imbottitura, relleno
trim: besatz, garniture, rifinitura, guarnizione, adorno
rib: bundchen, bord-cote, costina
coating: beschichtung, enduction, rivestimento, revestimiento
""")
)

COUNTRIES: Mapping[str, str] = dict(
    _meanings("""
Albania: albanien, albanie
Argentina: argentinien, argentine
Armenia: armenien, armenie
Australia: australien, australie
Austria: osterreich, autriche
Bangladesh: bangladesch
Belarus: bielorussia, bielorrusia, bielorussie
Belgium: belgien, belgique, belgio, belgica
Bolivia: bolivien, bolivie
Bosnia and Herzegovina: bosnia, bosnien, bosnie
Brazil: brasilien, bresil, brasile, brasil
Bulgaria: bulgarien, bulgarie
Cambodia: kambodscha, cambodge, cambogia, camboya
Canada: kanada
China: chine, cina, p.r.c., prc, p.r. china, pr china, p.r.china
Colombia: kolumbien, colombie
Croatia: kroatien, croatie, croazia, croacia
Czech Republic: czechia, tschechien, republique tcheque, repubblica ceca, republica checa
Denmark: danemark, danimarca, dinamarca
Dominican Republic: republique dominicaine, repubblica dominicana, republica dominicana
Ecuador: equateur
Egypt: agypten, egypte, egitto, egipto
El Salvador: salvador
Estonia: estland, estonie
Ethiopia: athiopien, ethiopie, etiopia
Finland: finnland, finlande, finlandia
France: frankreich, francia
Georgia: georgien, georgie
Germany: deutschland, allemagne, germania, alemania
Great Britain: united kingdom, england, uk, u.k., grossbritannien, royaume-uni, regno unito, \
reino unido, scotland
Greece: griechenland, grece, grecia
Guatemala: guatemala
Haiti: haiti
Honduras: honduras
Hong Kong: hongkong
Hungary: ungarn, hongrie, ungheria, hungria
India: indien, inde
Indonesia: indonesien, indonesie
Ireland: irland, irlande, irlanda
Israel: israele
Italy: italien, italie, italia
Japan: japon, giappone
Jordan: jordanien, jordanie, giordania, jordania
Kenya: kenia
Laos: lao pdr
Latvia: lettland, lettonie, lettonia, letonia
Lesotho: lesotho
Lithuania: litauen, lituanie, lituania
Madagascar: madagaskar
Malaysia: malaisie, malesia, malasia
Mauritius: maurice, ile maurice, mauricio
Mexico: mexiko, mexique, messico
Moldova: moldawien, moldavie, moldavia
Mongolia: mongolei, mongolie
Morocco: marokko, maroc, marocco, marruecos
Myanmar: birma, birmanie
Nepal: nepal
Netherlands: niederlande, pays-bas, paesi bassi, paises bajos
New Zealand: neuseeland, nouvelle-zelande, nuova zelanda, nueva zelanda
Nicaragua: nicaragua
North Macedonia: nordmazedonien, macedoine du nord, macedonia del nord, macedonia
Norway: norwegen, norvege, norvegia, noruega
Pakistan: pakistan
Peru: perou
Philippines: philippinen, filippine, filipinas
Poland: polen, pologne, polonia
Portugal: portogallo
Romania: rumanien, roumanie, rumania
Serbia: serbien, serbie
Singapore: singapur, singapour
Slovakia: slowakei, slovaquie, slovacchia, eslovaquia
Slovenia: slowenien, slovenie, eslovenia
South Africa: sudafrika, afrique du sud, sudafrica
South Korea: korea, sudkorea, coree du sud, coree, corea del sud, corea del sur, corea
Spain: spanien, espagne, spagna, espana
Sri Lanka: srilanka
Sweden: schweden, suede, svezia, suecia
Switzerland: schweiz, suisse, svizzera, suiza
Taiwan: taiwan
Tanzania: tansania, tanzanie
Thailand: thailande, thailandia, tailandia
Tunisia: tunesien, tunisie, tunez
Turkey: turkiye, turkei, turquie, turchia, turquia
Ukraine: ucraina, ucrania
United States: usa, u.s.a., united states of america, etats-unis, stati uniti, estados unidos
Uzbekistan: usbekistan, ouzbekistan
Vietnam: viet nam
""")
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# A line that says how to care has one of these words, and none that isn't among CARE_WORDS.
CARE_VERBS = _set("""
wash washing handwash washable bleach iron ironing tumble dry drying dryclean clean cleaning
waschen wasche maschinenwasche handwasche waschbar bleichen bugeln trocknen trockner
trocknergeeignet reinigung reinigen schonwaschgang feinwaschgang
laver lavage lavable blanchir chlore javel repasser repassage secher sechage seche nettoyage
lavare lavaggio lavabile candeggiare candeggio stirare asciugare asciugatura lavasecco pulire
lavar lavado blanquear lejia planchar secar secadora secado limpieza limpiar
""")
CARE_WORDS = CARE_VERBS | _set("""
a and any at be before by c cold colors colours cool cycle damp delicate do dried flat gentle hand
hang high hot in inside laundry like line low machine max maximum medium mild net no not of on only
or out professional remove reshape reverse separately setting shade shape side similar soak steam
temperature turn use using warm water while with wet wring
ahnlichen auf auswringen bei bis chemisch chemische dampf das den der die farben fur getrennt
gleichen grad heiss im kalt kein keine lauwarm liegend links linken maschine mit maximal maximale
nicht nur oder ohne schonend schleudern seite separat stufe temperatur tumbler trommel und vor
warmer wenden von
au aux avec basse chaud cote couleurs d de delicat des douce du eau en envers et faible fer froide
froid l la le les main maxi meme moyenne ne par pas plat pressing sans sec similaires separement
sur tambour tiede vapeur ou
acqua al alla bassa calda capi colori con di e freddo fredda ferro lavatrice macchina mano media
massimo non o piano rovescio scuri secco senza separatamente simili solo tamburo tiepida vapore
agua baja colores caliente del el frio fria maquina maxima plancha por reves seco separado
similares sin tibia usar vapor y tambor
""")
