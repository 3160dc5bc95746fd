"""The simulated study: French centres and patients, the same in every run and on every Python.

Every patient is created on request, from her own seed; nothing depends on the order of the calls. The data are equal
byte for byte, because only guaranteed functions of `random.Random` and no floating-point functions are used.
"""

import uuid
from collections import Counter
from datetime import date, timedelta
from random import Random
from typing import Any

from faker import Faker

Json = dict[str, Any]

STATUSES = ("preIncluded", "included", "completed", "withdrawn")
STATUS_WEIGHTS = (15, 50, 28, 7)
CENTRE_WEIGHTS = (1, 2, 3, 5, 8, 13)  # some centres include far more patients than others
HOSPITALS = ("CHU {}", "Centre hospitalier {}", "Hôpital privé {}", "Clinique Médipôle {}")
FIRST_INCLUSION = date(2022, 3, 1)
LAST_INCLUSION_DAY = 900

VISITS = ("Inclusion", "Suivi à 3 mois", "Suivi à 6 mois", "Suivi à 12 mois")
DAYS_BETWEEN_VISITS = 91
EXAMS = (
    ("Échographie endovaginale", "Lésion ovarienne gauche", "mm"),
    ("IRM pelvienne", "Nodule du torus utérin", "mm"),
    ("Examen clinique", "Douleur à la palpation (EVA)", "/10"),
    ("Bilan biologique", "CA-125 sérique", "U/mL"),
)
SAMPLES = ("Salive", "Sang veineux", "Liquide péritonéal")
CONSENTS = ("Étude principale", "Conservation des échantillons", "Réutilisation des données génétiques")
REASONS = ("Déménagement", "Retrait du consentement", "Perdue de vue")
COMMENTS = (None, "Patiente très motivée", "Traitement arrêté à sa demande", "À rappeler : n'a pas répondu")

SURVEYS = {
    "EHP-5": ("Difficultés à marcher", "Sentiment de perte de contrôle", "Humeur changeante"),
    "SF-36": ("Santé perçue", "Énergie, vitalité", "Limitations dues à l'état émotionnel"),
    "Douleur": ("Dysménorrhées (EVA)", "Dyspareunie (EVA)", "Gêne à la défécation (EVA)"),
}
CHOICES = ("Jamais", "Rarement", "Parfois", "Souvent", "Très fréquemment")


class Study:
    """Centres, patients, records, questionnaires and sample requests of a simulated study."""

    def __init__(self, centres: int = 100, patients: int = 2500, seed: int = 2022) -> None:
        self.seed = seed
        self._names = _Names(seed)
        self.organizations = [self._organization(number) for number in range(1, centres + 1)]
        self._patients: dict[str, tuple[int, Json]] = {}
        self._members: dict[str, list[str]] = {organization["id"]: [] for organization in self.organizations}
        rng = self._rng("centres")
        weights = rng.choices(CENTRE_WEIGHTS, k=centres)
        for number, organization in enumerate(rng.choices(self.organizations, weights, k=patients), start=1):
            patient_id = _identifier(f"{seed}/patient/{number}")
            self._patients[patient_id] = number, organization
            self._members[organization["id"]].append(patient_id)

    def inclusions(self, organization_id: str, limit: int, page: int) -> Json | None:
        """Return one page of a centre's inclusions with their total number; None if there is no such centre."""
        members = self._members.get(organization_id)
        if members is None:
            return None
        start = (page - 1) * limit
        return {"data": [self.inclusion(member) for member in members[start : start + limit]], "total": len(members)}

    def statistics(self, organization_id: str) -> Json | None:
        """Return the number of inclusions of a centre, in total and by status; None if there is no such centre."""
        members = self._members.get(organization_id)
        if members is None:
            return None
        counts = Counter(self._status(member) for member in members)
        return {"total": len(members), **{status: counts[status] for status in STATUSES}}

    def inclusion(self, patient_id: str) -> Json:
        """Return what a search shows about a patient."""
        number, organization = self._patients[patient_id]
        rng = self._rng("inclusion", number)
        patient = self._person(rng)
        initials = patient["lastName"][0] + patient["firstName"][0]
        return {
            "patientId": patient_id,
            "pseudonym": f"{organization['number']}-{number:05d}-{initials}",
            "inclusionDate": _day(self._inclusion_day(number)),
            "status": self._status(patient_id),
            "organization": {"id": organization["id"], "name": organization["name"]},
            "patient": patient,
        }

    def record(self, patient_id: str) -> Json | None:
        """Return a patient's whole record: consents, visits, exams and samples; None if there is no such patient."""
        if patient_id not in self._patients:
            return None
        number, _ = self._patients[patient_id]
        status = self._status(patient_id)
        rng = self._rng("record", number)
        record = {
            **self.inclusion(patient_id),
            "consents": None if status == "preIncluded" else [_consent(rng, kind) for kind in CONSENTS],
            "visits": [self._visit(number, index) for index in range(self._visits_done(number, status))],
            "comment": rng.choice(COMMENTS),
        }
        if status == "withdrawn":
            record["withdrawal"] = {"reason": rng.choice(REASONS), "requestedByPatient": rng.random() < 0.5}
        return record

    def some_patients(self, count: int) -> set[str]:
        """Return some patients, chosen by the seed."""
        return set(self._rng("some patients").sample(list(self._patients), count))

    def surveys(self, patient_id: str) -> list[Json]:
        """Return the questionnaires that a patient got, with her answers."""
        if patient_id not in self._patients:
            return []
        number, _ = self._patients[patient_id]
        rng = self._rng("surveys", number)
        visits = self._visits_done(number, self._status(patient_id))
        return [self._survey(rng, number, visit, name) for visit in range(visits) for name in SURVEYS]

    def request(self, tube_id: str) -> Json | None:
        """Return the analysis request of a sample tube; None if no record contains that tube."""
        patient_id = _identifier(f"{self.seed}/patient/{_number_of(tube_id)}")
        for visit in (self.record(patient_id) or {"visits": []})["visits"]:
            for sample in visit.get("samples") or []:
                if sample["tubeId"] == tube_id:
                    return self._request(patient_id, visit["name"], sample)
        return None

    def _request(self, patient_id: str, visit: str, sample: Json) -> Json:
        rng = self._rng("request", sample["tubeId"])
        received = rng.random() < 0.9
        return {
            "id": _identifier(f"{self.seed}/request/{sample['tubeId']}"),
            "tubeId": sample["tubeId"],
            "patientId": patient_id,
            "visit": visit,
            "sampleType": sample["type"],
            "status": rng.choice(("Reçue", "En cours d'analyse", "Validée")) if received else "Attendue",
            "laboratory": {"name": "Plateforme de séquençage", "city": rng.choice(self._names.cities)},
            "result": {"quality": rng.randint(70, 99), "valid": rng.random() < 0.95} if received else None,
        }

    def _organization(self, number: int) -> Json:
        rng = self._rng("organization", number)
        city = rng.choice(self._names.cities)
        return {
            "id": _identifier(f"{self.seed}/organization/{number}"),
            "name": f"{number:03d} {rng.choice(HOSPITALS).format(city)}",
            "number": f"{number:03d}",
            "address": {"city": city, "country": "France"},
            "investigator": {
                "lastName": rng.choice(self._names.last_names),
                "firstName": rng.choice(self._names.first_names),
            },
        }

    def _person(self, rng: Random) -> Json:
        person: Json = {
            "lastName": rng.choice(self._names.last_names),
            "firstName": rng.choice(self._names.first_names),
            "birthDate": (date(1975, 1, 1) + timedelta(days=rng.randrange(30 * 365))).isoformat(),
            "address": {"city": rng.choice(self._names.cities), "postalCode": f"{rng.randrange(1000, 96000):05d}"},
        }
        if rng.random() < 0.8:
            person["phone"] = rng.choice((None, f"06{rng.randrange(10**8):08d}"))
        return person

    def _visit(self, number: int, index: int) -> Json:
        rng = self._rng("visit", number, index)
        visit: Json = {
            "name": VISITS[index],
            "date": _day(self._inclusion_day(number) + index * DAYS_BETWEEN_VISITS + rng.randint(-5, 5)),
            "exams": [_exam(rng, *exam) for exam in rng.sample(EXAMS, rng.randint(1, len(EXAMS)))],
        }
        if rng.random() < 0.9:
            kinds = rng.sample(SAMPLES, rng.randint(1, len(SAMPLES)))
            visit["samples"] = [_sample(rng, number, index, kind) for kind in kinds] if rng.random() < 0.9 else None
        return visit

    def _survey(self, rng: Random, number: int, visit: int, name: str) -> Json:
        completed = rng.random() < 0.85
        return {
            "id": _identifier(f"{self.seed}/survey/{number}/{visit}/{name}"),
            "name": name,
            "visit": VISITS[visit],
            "completed": completed,
            "answers": [_answer(rng, question) for question in SURVEYS[name]] if completed else [],
        }

    def _status(self, patient_id: str) -> str:
        return self._rng("status", self._patients[patient_id][0]).choices(STATUSES, STATUS_WEIGHTS)[0]

    def _inclusion_day(self, number: int) -> int:
        return self._rng("day", number).randrange(LAST_INCLUSION_DAY)

    def _visits_done(self, number: int, status: str) -> int:
        possible = {"preIncluded": (0,), "included": (1, 2, 3), "completed": (4,), "withdrawn": (1, 2)}[status]
        return self._rng("visits", number).choice(possible)

    def _rng(self, *key: object) -> Random:
        """Return the random numbers for a key; a string as the seed gives the same ones on every Python."""
        return Random("/".join(map(str, (self.seed, *key))))


class _Names:
    """Names to choose from, generated once: a Faker call per field would take longer than everything else."""

    def __init__(self, seed: int) -> None:
        fake = Faker("fr_FR", providers=["faker.providers.person", "faker.providers.address"])
        fake.seed_instance(seed)
        self.last_names = [fake.last_name() for _ in range(400)]
        self.first_names = [fake.first_name_female() for _ in range(200)]
        self.cities = [fake.city() for _ in range(150)]


def _identifier(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _day(offset: int) -> str:
    return (FIRST_INCLUSION + timedelta(days=offset)).isoformat()


def _number_of(tube_id: str) -> str:
    """Return the patient's number from a tube id, such as 123 from EB000123-21."""
    return tube_id[2:8].lstrip("0")


def _consent(rng: Random, kind: str) -> Json:
    signed = rng.random() < 0.9
    return {"type": kind, "signed": signed, "version": f"{rng.randint(1, 3)}.0" if signed else None}


def _exam(rng: Random, name: str, measure: str, unit: str) -> Json:
    exam: Json = {"type": name, "performed": rng.random() < 0.9, "result": None}
    if exam["performed"]:
        exam["result"] = {"measure": measure, "value": rng.randint(0, 100) / 10, "unit": unit}
        if rng.random() < 0.3:
            exam["result"]["conclusion"] = rng.choice(("Évocateur d'endométriose", "Aspect normal", "À contrôler"))
    return exam


def _sample(rng: Random, number: int, visit: int, kind: str) -> Json:
    return {
        "tubeId": f"EB{number:06d}-{visit + 1}{SAMPLES.index(kind) + 1}",
        "type": kind,
        "volumeMl": rng.randint(5, 50) / 10,
        "storage": rng.choice((None, {"temperature": -80, "box": f"B{rng.randint(1, 40):02d}"})),
    }


def _answer(rng: Random, question: str) -> Json:
    score = rng.choice((None, *range(len(CHOICES))))
    return {"question": question, "score": score, "label": None if score is None else CHOICES[score]}
