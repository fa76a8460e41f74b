"""Made-up patients, English and Spanish, from two lists of names that share no word: TUNE and REPORT.

Rules and word lists may be tuned on TUNE only; the figures of ``docs/deid-report.md`` come from REPORT. Nobody here
exists. Each list holds some surnames that are also words of radiology (Head, Cuello), as some patients have them.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, field

_MONTHS_EN = "January February March April May June July August September October November December".split()
_MONTHS_ES = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split()


@dataclass(frozen=True)
class Names:
    """Words of one list, by language (``en``, ``es``); ``also_words`` are surnames that mean something else too."""

    given: dict[str, list[str]]
    family: dict[str, list[str]]
    streets: dict[str, list[str]]
    cities: dict[str, list[str]]
    hospitals: dict[str, list[str]]
    phrases: dict[str, list[str]]
    relatives: dict[str, list[str]]  # how a text names somebody who belongs to the patient
    also_words: frozenset[str]

    def words(self) -> set[str]:
        """Every word of the identities, in lower case; the clinical phrases are not part of an identity."""
        groups = (self.given, self.family, self.streets, self.cities, self.hospitals)
        texts = [name for group in groups for names in group.values() for name in names]
        return {word.casefold() for text in texts for word in text.split()} - COMMON_NOUNS


COMMON_NOUNS = frozenset(
    "avenida avenue calle camino centre centro clinic clínica close county crescent cross de del drive hospital "
    "infirmary lane medical médico memorial mill old pasaje paseo road saint terrace virgen".split()
)

TUNE = Names(
    given={
        "en": "Anna Brian Claire Derek Edith Frank Gloria Howard Ingrid Jerome Kathleen Leonard".split(),
        "es": "Alejandra Bruno Carolina Diego Elvira Fermín Gabriela Hernán Inés Joaquín Lucía Matías".split(),
    },
    family={
        "en": "Kowalski Abernathy Blackwood Crawford Donnelly Ellsworth Fitzgerald Gallagher Hutchinson Head".split(),
        "es": "Arriagada Bustamante Cifuentes Echeverría Figueroa Gutiérrez Henríquez Iturra Jaramillo Cuello".split(),
    },
    streets={
        "en": ["Maplewood Avenue", "Thornbury Lane", "Kingsley Drive"],
        "es": ["Calle Alcántara", "Avenida Providencia", "Pasaje Quillota"],
    },
    cities={"en": ["Harrowgate", "Bellingham", "Dunmore"], "es": ["Valparaíso", "Talavera", "Antofagasta"]},
    hospitals={
        "en": ["Saint Alban Infirmary", "Riverton Clinic"],
        "es": ["Hospital Sótero", "Clínica Reñaca"],
    },
    phrases={
        "en": [
            "CT chest without contrast 5 mm", "MR brain axial T2 FLAIR", "Abdomen portal venous phase",
            "CT abdomen and pelvis with IV contrast, portal venous phase", "Chest PA and lateral",
            "T1 axial post contrast fat sat", "Whole body PET CT 3 mm",
            "Follow up of pulmonary nodule right upper lobe", "Thin slices lung 1.25 mm", "Left knee two views",
            "Contrast enhanced head and neck angiography", "Suspected renal stone", "CT urogram with delayed phase",
            "MR cholangiopancreatography", "Ankle AP lateral and mortise views", "High resolution chest CT prone",
            "Upper abdomen ultrasound", "Cervical spine flexion and extension", "Breast MRI dynamic series",
            "CT pulmonary angiogram 1 mm", "Sinuses coronal bone window", "Multiparametric prostate MR",
            "Scoliosis standing", "Pituitary gland with gadolinium", "Sagittal STIR whole spine",
            "Low dose lung screening", "Right shoulder arthrogram", "Barium swallow", "Liver lesion characterization",
            "Query appendicitis", "Post reduction wrist", "Orbits pre contrast 2.5 mm",
            "CT colonography supine and prone", "Hips AP and frog leg lateral", "MR enterography with oral contrast",
            "Ultrasound guided thyroid aspiration", "Post stroke perfusion study",
            "Renal mass protocol nephrographic phase", "Screening mammogram both breasts", "Oblique views of the foot",
            "Small bowel follow through", "Suspected pulmonary embolism", "Temporal bones high resolution",
            "Weight bearing ankle", "Whole body bone scan", "Carotid Doppler bilateral",
            "Neonatal head ultrasound via fontanelle", "MR venogram without gadolinium", "Upper GI series with barium",
            "Acute abdomen erect and supine", "Staging CT chest abdomen pelvis", "Intravenous pyelogram delayed film",
            "CT abdomen and pelvis with contrast", "CT chest high resolution",
            "CT angiogram chest for pulmonary embolism", "CT cervical spine trauma protocol",
            "CT kidneys ureters bladder low dose", "CT sinuses coronal reformats", "CT coronary calcium scoring",
            "Axial bone window 1 mm", "Portal venous phase 5 mm", "Late arterial phase liver",
            "MRI brain with and without gadolinium", "MRI left knee without contrast", "MR prostate multiparametric",
            "MR cholangiopancreatography", "Cardiac MR with late gadolinium enhancement", "Sagittal T2 fat saturated",
            "Axial FLAIR 3 mm", "Diffusion weighted imaging b1000 ADC map", "Chest X-ray PA and lateral",
            "Right wrist three views", "Pelvis AP and lateral hip", "Left ankle weight bearing views",
            "Scoliosis series standing full spine", "Paediatric bone age left hand", "Abdomen erect and supine",
            "Ultrasound thyroid and neck nodes", "Venous Doppler lower limb right",
            "Pelvic ultrasound transabdominal and transvaginal", "Neonatal cranial ultrasound",
            "Infant hip ultrasound for dysplasia", "Transthoracic echocardiogram complete study",
            "Whole body bone scan", "Cerebral angiogram via right femoral access",
            "Barium swallow with video fluoroscopy", "Dental panoramic radiograph",
            "Cone beam CT mandible for implant planning", "Shortness of breath and chest pain",
            "Persistent headache, rule out intracranial mass", "Fall from height, suspected hip fracture",
            "Lower back pain radiating to left leg", "Right lower quadrant pain, query appendicitis",
            "Known breast cancer, staging and follow up", "Post-operative check after total knee replacement",
            "Acute stroke, left sided weakness", "Motion artifact, patient unable to hold breath",
            "Patient refused intravenous contrast", "CT head without contrast", "CT chest abdomen pelvis with contrast",
            "CT angiogram pulmonary arteries", "MRI brain with and without contrast",
            "MRI lumbar spine without contrast", "MRI right knee without contrast", "Chest two views PA and lateral",
            "Portable chest AP supine", "Abdomen supine and upright", "Left ankle three views",
            "Ultrasound abdomen complete", "Ultrasound renal and bladder", "Carotid duplex ultrasound bilateral",
            "Venous Doppler lower extremity left", "Screening mammogram bilateral with tomosynthesis",
            "Diagnostic mammogram left breast", "Bone scan whole body", "PET CT skull base to mid thigh",
            "Myocardial perfusion stress and rest", "Thyroid uptake and scan",
            "Upper GI series with small bowel follow through", "Barium swallow modified with speech therapy",
            "Voiding cystourethrogram", "Coronary angiography with left ventriculogram",
            "Cerebral angiogram diagnostic", "Panoramic dental radiograph", "Bitewing series posterior teeth",
            "Transthoracic echocardiogram complete", "Obstetric ultrasound second trimester anatomy scan",
            "Fetal growth and biophysical profile", "Nuchal translucency screening first trimester",
            "Pediatric hip ultrasound for dysplasia", "Neonatal head ultrasound", "Bone age left hand and wrist",
            "Axial T2 FLAIR", "Sagittal T1 fat saturated post contrast", "Coronal STIR pelvis",
            "Diffusion weighted imaging with ADC map", "Axial soft tissue thin slices", "Coronal reformat bone window",
            "Lung nodule low dose protocol", "Arterial phase liver", "Delayed phase five minutes",
            "Motor vehicle collision with neck pain", "Fall from standing height, rule out hip fracture",
            "Acute right lower quadrant pain, possible appendicitis", "Sudden onset shortness of breath and chest pain",
            "Worst headache of life, rule out subarachnoid hemorrhage", "Acute left sided weakness and slurred speech",
            "Chronic low back pain radiating to right leg", "Follow up metastatic colon cancer on chemotherapy",
            "Lymphoma staging prior to treatment", "Palpable lump right breast upper outer quadrant",
            "Postoperative day three with fever and abdominal distension",
            "Status post total knee replacement, check alignment", "Flank pain and hematuria, suspected kidney stone",
            "Community acquired pneumonia", "Congestive heart failure exacerbation", "Small bowel obstruction",
            "Diabetic foot ulcer, evaluate for osteomyelitis",
        ],
        "es": [
            "TAC de tórax con contraste", "Resonancia de rodilla derecha", "Radiografía de mano izquierda",
            "TAC de abdomen y pelvis con contraste", "Radiografía de tórax frente y perfil", "Ecografía hepática",
            "Senos paranasales sin contraste", "Control de nódulo pulmonar", "Angiografía de cuello",
            "Mamografía bilateral", "Cerebro axial T2", "Rodilla izquierda 3 mm",
            "TAC de cráneo sin contraste, ventana ósea", "Resonancia de hombro derecho",
            "Radiografía de pelvis anteroposterior", "Ecotomografía abdominal completa",
            "Angiotac de tórax, protocolo embolia pulmonar", "Columna cervical lateral",
            "Resonancia cerebral con gadolinio", "Tobillo izquierdo, dos proyecciones", "Mamografía de tamizaje",
            "Secuencia sagital T1", "Control postoperatorio de cadera", "Dolor lumbar crónico", "Ecografía de tiroides",
            "Fase arterial y portal 5 mm", "Evaluación de derrame pleural", "Edad ósea",
            "Descartar fractura de escafoides", "Tórax portátil", "Aparato urinario simple",
            "Articulación temporomandibular", "Ecografía obstétrica segundo trimestre",
            "TAC de columna lumbar en urgencia", "Radiografía de tórax en inspiración",
            "Resonancia de abdomen con colangiografía", "Doppler venoso de piernas", "Rodilla en carga",
            "Estudio de epilepsia", "Control de fractura de muñeca", "Mamografía con magnificación",
            "Angiografía coronaria por tomografía", "Sospecha de apendicitis aguda", "Ecografía testicular",
            "Tórax lateral izquierdo", "Cráneo frontal y lateral", "Resonancia de columna dorsal sin contraste",
            "Caderas en posición de rana", "Tomografía de senos paranasales corte fino", "Nódulo pulmonar solitario",
            "Ecografía de partes blandas", "Urografía excretora", "TC de abdomen y pelvis con contraste",
            "TAC de cráneo simple", "Tomografía de tórax de alta resolución", "TC de columna cervical por traumatismo",
            "UroTAC sin contraste por cólico renal", "TC de senos paranasales",
            "Angiotomografía de arterias coronarias", "Cortes axiales ventana ósea", "Fase portal abdomen superior",
            "Reconstrucción coronal parénquima pulmonar", "RM cerebral sin y con gadolinio",
            "Resonancia magnética de columna lumbosacra", "RMN de rodilla derecha", "RM de próstata multiparamétrica",
            "Colangiorresonancia magnética", "RM cardíaca con realce tardío", "Sagital T2 con supresión grasa",
            "Difusión axial y mapa ADC", "Secuencia axial FLAIR encéfalo", "Radiografía de tórax PA y lateral",
            "Tórax portátil en decúbito supino", "Rx de muñeca izquierda dos proyecciones",
            "Radiografía de pelvis anteroposterior", "Rx de tobillo en carga",
            "Telerradiografía de columna en bipedestación", "Edad ósea mano izquierda",
            "Abdomen simple de pie y decúbito", "Doppler de troncos supraaórticos",
            "Ecografía obstétrica morfológica semana veinte", "Ecografía transfontanelar neonatal",
            "Ecografía de caderas del lactante", "Ecocardiograma transtorácico con Doppler color",
            "Mastografía diagnóstica mama derecha", "Oblicua mediolateral izquierda",
            "Gammagrafía ósea de cuerpo completo", "Perfusión miocárdica en reposo y esfuerzo",
            "Cistouretrografía miccional seriada pediátrica", "Ortopantomografía dental",
            "Tomografía de haz cónico maxilar superior", "Disnea de esfuerzo y dolor torácico",
            "Cefalea persistente, descartar lesión ocupante de espacio", "Caída de propia altura, sospecha de fractura",
            "Lumbalgia crónica con irradiación a pierna derecha", "Dolor en fosa ilíaca derecha, probable apendicitis",
            "Control postoperatorio de prótesis de cadera", "Cáncer de colon, estadificación y seguimiento",
            "Ictus agudo con hemiparesia izquierda", "Neumonía adquirida en la comunidad",
            "Nódulo palpable en mama izquierda", "Paciente poco colaborador, artefactos de movimiento",
            "TC de cráneo sin contraste", "TAC de tórax y abdomen con contraste", "Tomografía de senos paranasales",
            "AngioTC de arterias pulmonares", "RM cerebral con gadolinio", "Resonancia magnética de columna lumbar",
            "RMN de rodilla izquierda", "Radiografía de tórax posteroanterior y lateral",
            "Rx de tórax portátil en cama", "Placa simple de abdomen en bipedestación",
            "Radiografía de muñeca derecha dos proyecciones", "Columna cervical funcional en flexión y extensión",
            "Ecografía abdominal completa", "Ultrasonido pélvico transvaginal",
            "Ecografía de partes blandas del hombro", "Eco Doppler venoso de miembros inferiores",
            "Ultrasonido de tiroides y cuello", "Mamografía bilateral de cribado",
            "Mastografía de tamizaje dos proyecciones", "Gammagrafía ósea de cuerpo entero",
            "Centellograma tiroideo con tecnecio", "PET-TC oncológico con FDG",
            "Perfusión miocárdica en esfuerzo y reposo", "Tránsito esofagogastroduodenal con bario",
            "Enema opaco con doble contraste", "Cistouretrografía miccional seriada",
            "Coronariografía por acceso radial", "Arteriografía de miembro inferior izquierdo",
            "Ortopantomografía digital de control", "Tomografía de haz cónico del maxilar superior",
            "Ecocardiograma transtorácico", "Ecografía obstétrica del segundo trimestre",
            "Control de crecimiento fetal", "Ecografía de cadera del lactante", "Edad ósea de mano izquierda",
            "Ecografía transfontanelar en prematuro", "Axial T2 con supresión grasa", "Sagital T1 sin contraste",
            "Difusión y mapa ADC", "Fase portal de abdomen superior", "Reconstrucción coronal con ventana ósea",
            "Cortes finos de pulmón alta resolución", "Traumatismo craneoencefálico leve con pérdida de conciencia",
            "Accidente de tráfico, descartar fractura costal", "Caída de propia altura con dolor en cadera",
            "Dolor en fosa ilíaca derecha, sospecha de apendicitis", "Cefalea de inicio súbito con vómitos",
            "Hemiparesia derecha de dos horas de evolución", "Lumbalgia crónica con irradiación a pierna izquierda",
            "Control evolutivo de cáncer de mama", "Estadificación de neoplasia de pulmón",
            "Nódulo mamario palpable en cuadrante superior externo",
            "Fiebre y tos con expectoración, descartar neumonía", "Cólico nefrítico izquierdo de repetición",
            "Postoperatorio de artroplastia de cadera derecha", "Control posterior a osteosíntesis de tibia",
            "Insuficiencia cardíaca descompensada", "Colecistitis aguda litiásica",
            "Accidente cerebrovascular isquémico en estudio", "Lactante con dificultad respiratoria y sibilancias",
        ],
    },
    relatives={
        "en": ["{phrase}. Accompanied by {relative's surname}, {telephone}", "Mother: {relative's surname}. {phrase}"],
        "es": ["{phrase}. Acompañado por {relative's surname}", "Sra. {relative's surname}; {phrase}"],
    },
    also_words=frozenset({"Head", "Cuello"}),
)  # fmt: skip
REPORT = Names(
    given={
        "en": "Adelaide Barnaby Cordelia Desmond Eleanor Frederick Gwendolyn Hubert Isadora Jasper Kimberley Lionel "
        "Millicent Nathaniel Octavia Percival Rosalind Sebastian Theodora Wilfred".split(),
        "es": "Amparo Baltasar Consuelo Domingo Esperanza Florencio Guadalupe Horacio Iñaki Jimena Leocadia "
        "Maximiliano Nieves Óscar Purificación Ramiro Soledad Teófilo Úrsula Virginia".split(),
    },
    family={
        "en": "Ashdown Bickerstaff Chatterton Dalrymple Entwistle Featherstone Greenhalgh Hollingsworth Inglethorpe "
        "Jephcott Kilpatrick Lockhart Montague Nettleton Ollerenshaw Pemberton Quartermain Ravenscroft Small "
        "Hand".split(),
        "es": "Abascal Benavides Carvajal Dueñas Elizondo Fuenzalida Goyeneche Huidobro Ibáñez Jodorowsky Larraín "
        "Monasterio Núñez Olavarría Peñalver Quintanilla Riquelme Saavedra Cabeza Costillas".split(),
    },
    streets={
        "en": ["Winterbourne Crescent", "Old Mill Terrace", "Chesterfield Road", "Larkspur Close"],
        "es": ["Calle Hortaleza", "Avenida Irarrázaval", "Paseo Recoletos", "Camino Lonquén"],
    },
    cities={
        "en": ["Todmorden", "Ludlow", "Ithaca", "Wollongong"],
        "es": ["Zaragoza", "Concepción", "Rancagua", "Oviedo"],
    },
    hospitals={
        "en": ["Queensferry Memorial Hospital", "Holy Cross Medical Centre", "Westlake County Hospital"],
        "es": ["Hospital Virgen del Rocío", "Clínica Alemana de Temuco", "Centro Médico Teknon"],
    },
    phrases={
        "en": [
            "CT Chest Abdomen Pelvis with IV contrast", "MRI Lumbar Spine without and with gadolinium",
            "Portable chest AP upright", "XR Knee left, three views", "US Abdomen complete",
            "Whole body bone scan, delayed images", "PET/CT skull base to mid thigh",
            "Cerebral angiogram, right internal carotid injection", "Bitewing intraoral left molars",
            "Sag T2 FSE fat sat", "Axial DWI and ADC map", "CT pulmonary angiogram, bolus tracking",
            "Lung 1 mm sharp kernel", "Coronal MPR bone window 3 mm", "Transvaginal ultrasound pelvis",
            "Thyroid ultrasound with fine needle aspiration", "Duplex venous lower extremity right",
            "Carotid duplex bilateral", "Renal scintigraphy with furosemide washout",
            "Myocardial perfusion SPECT rest and stress", "Ventilation perfusion lung scan",
            "Barium enema double contrast", "Modified barium swallow with speech therapist",
            "Hysterosalpingography, infertility workup", "Voiding cystourethrogram, pediatric",
            "PICC line placement under fluoroscopy", "Left heart catheterization with coronary arteriography",
            "Transarterial chemoembolization of liver lesion", "MR Cholangiopancreatography breath hold",
            "Cardiac MR viability, late enhancement short axis", "MR Breast dynamic subtraction",
            "Multiparametric MRI prostate with endorectal coil", "Time of flight intracranial angiography MIP",
            "CT urography, excretory phase", "Low dose CT lung cancer screening", "CT Temporal bones 0.6 mm helical",
            "Cone beam CT mandible implant planning", "Hand and wrist for bone age", "Skeletal survey infant",
            "Scoliosis series standing, full spine", "Right shoulder axillary lateral", "Pelvis AP and frog leg hips",
            "Left ankle mortise view", "Magnification views right breast, craniocaudal",
            "Stereotactic core biopsy left breast", "Scrotal ultrasound, color flow",
            "Neonatal head ultrasound through anterior fontanelle", "MR Brain epilepsy protocol, hippocampal coronal",
            "Spectroscopy single voxel left frontal lobe", "Perfusion stroke study, mean transit time",
            "Arterial phase liver, thin slices", "Topogram lateral", "Three plane localizer",
            "Dose report and patient protocol", "Susceptibility weighted imaging, minimum intensity projection",
            "MR arthrogram right hip", "Gallium scan for occult infection", "Parathyroid sestamibi, early and late",
            "CT guided drainage of pelvic abscess", "Calcium score, prospective gating",
            "Severe headache, sudden onset, rule out subarachnoid hemorrhage",
            "Shortness of breath and elevated D-dimer", "Fall from ladder, hip pain, cannot bear weight",
            "Follow up of 6 mm nodule in right upper lobe",
            "Known metastatic colon cancer, restaging after chemotherapy", "Palpable lump upper outer quadrant",
            "Hematuria and flank pain, query renal stone", "Chronic low back pain radiating to left leg",
            "Persistent cough and fever for two weeks", "Seizure, first episode",
            "Postoperative day 2, check drain position", "Nasogastric tube placement verification",
            "Jaundice with dilated bile ducts", "Suspected deep vein thrombosis, swollen calf",
            "Abnormal liver enzymes, fatty infiltration suspected",
            "Patient unable to hold breath, motion artifact present", "Patient claustrophobic, sedated by anesthesia",
            "Contrast allergy, premedicated with steroids", "Extravasation of contrast at left antecubital site",
            "Patient refused IV contrast", "Limited exam due to body habitus",
            "Images repeated because of metal artifact", "Patient denies pregnancy, shield used",
            "Cardiac pacemaker in place, conditional device", "Acute appendicitis versus ovarian torsion",
            "Closed head injury with loss of consciousness", "Chronic kidney disease stage 4",
            "Small bowel obstruction, prior laparotomy", "Acute ischemic stroke, left sided weakness",
            "Aortic aneurysm measuring 52 mm, surveillance", "Multiple sclerosis, new visual symptoms",
            "Rotator cuff tear suspected after lifting injury", "Family history of breast cancer in mother and sister",
            "Dyspnea on exertion, aortic stenosis grade 3", "Decreased fetal movement, small for gestational age",
            "Diabetic foot ulcer, rule out osteomyelitis", "Unexplained weight loss of 10 kg",
            "Hearing loss and tinnitus, exclude acoustic neuroma", "Non-accidental trauma concern",
            "Wisdom tooth pain, impacted lower third molar", "Interpreter needed, patient hard of hearing",
            "Prior outside films not available for comparison",
        ],
        "es": [
            "TC de cerebro sin contraste", "TAC de tórax, abdomen y pelvis con contraste",
            "RM de columna lumbar con gadolinio", "Radiografía de tórax portátil, decúbito supino",
            "Rx rodilla derecha dos proyecciones", "PET-TC con fluorodesoxiglucosa, estadificación",
            "Arteriografía de troncos supraaórticos", "Radiografía periapical incisivos superiores",
            "Ortopantomografía digital", "Sagital T1 sin saturación grasa",
            "Difusión axial y mapa de coeficiente aparente", "Angiotomografía de arterias pulmonares",
            "Pulmón 1 mm filtro duro", "Reconstrucción coronal ventana ósea 2 mm", "Ecografía transvaginal",
            "Ultrasonido obstétrico del tercer trimestre", "Punción con aguja fina de nódulo tiroideo",
            "Eco de partes blandas región inguinal izquierda", "Renograma diurético",
            "Videodeglución con distintas consistencias", "Histerosalpingografía con contraste hidrosoluble",
            "Cistouretrografía miccional pediátrica", "Instalación de catéter venoso central guiada por imagen",
            "Coronariografía por vía radial", "Embolización de arterias uterinas", "Colangiorresonancia en apnea",
            "Resonancia cardíaca, realce tardío eje corto", "RM de mama dinámica con sustracción",
            "Próstata multiparamétrica sin bobina endorrectal", "Uro-TC fase excretora",
            "TC de peñascos alta resolución", "Tomografía de haz cónico maxilar inferior",
            "Carpo y mano izquierda para edad ósea", "Telerradiografía de columna total de pie",
            "Hombro derecho, proyección axial", "PELVIS AP EN CARGA", "Tobillo izquierdo frente y lateral",
            "Proyección magnificada de microcalcificaciones, mama derecha",
            "Biopsia estereotáxica mamaria asistida por vacío", "Ecografía testicular con flujo color",
            "Ecografía transfontanelar del recién nacido", "Protocolo de epilepsia, cortes coronales de hipocampo",
            "Espectroscopía monovóxel de ganglios basales", "Estudio de perfusión cerebral, código ictus",
            "Fase portal de hígado, cortes finos", "Topograma frontal", "Localizador en tres planos",
            "Informe de dosis", "Secuencia de eco de gradiente, susceptibilidad magnética",
            "Artro-RM de cadera izquierda", "Gammagrafía de paratiroides, imágenes tardías",
            "Drenaje percutáneo de absceso hepático guiado por tomografía", "Puntaje de calcio coronario",
            "Fistulografía de acceso para hemodiálisis", "Nefrostomía percutánea derecha",
            "Linfogammagrafía para ganglio centinela", "Entero-resonancia con distensión oral",
            "Elastografía hepática por ondas de corte", "Cefalea súbita intensa, descartar hemorragia subaracnoidea",
            "Disnea y dímero D elevado, sospecha de tromboembolismo",
            "Caída a nivel, dolor e impotencia funcional de cadera",
            "Control de nódulo pulmonar de 8 mm en lóbulo inferior", "Cáncer de colon operado, control oncológico",
            "Tumoración palpable en cuadrante superoexterno", "Cólico renal derecho, sospecha de litiasis ureteral",
            "Lumbociática izquierda de larga evolución", "Tos productiva y fiebre de una semana",
            "Primera crisis convulsiva en adulto", "Postoperatorio, comprobar posición del tubo de drenaje",
            "Verificar sonda nasogástrica", "Ictericia y coluria, vía biliar dilatada",
            "Aumento de volumen de pantorrilla, descartar trombosis venosa profunda",
            "Hígado graso, transaminasas elevadas", "Paciente no colabora, artefacto por movimiento",
            "Claustrofobia, se realiza bajo sedación", "Alérgica al yodo, premedicación con corticoides",
            "Extravasación de contraste en antebrazo derecho",
            "No firma consentimiento informado, se suspende contraste",
            "Estudio limitado por interposición de gas intestinal", "Se repite toma por mala inspiración",
            "Niega embarazo, se coloca protección plomada", "Portador de marcapasos compatible", "Apendicitis aguda",
            "Traumatismo craneoencefálico con pérdida de conciencia", "Enfermedad renal crónica etapa 5",
            "Obstrucción intestinal por bridas", "Accidente cerebrovascular isquémico, hemiparesia derecha",
            "Aneurisma de aorta abdominal de 48 mm, seguimiento",
            "Esclerosis múltiple, valorar nuevas lesiones desmielinizantes", "Rotura de manguito rotador a estudio",
            "Madre y hermana con antecedente de cáncer de mama", "Esguince grado 2, dolor en maléolo externo",
            "Restricción del crecimiento fetal, oligohidramnios", "Pie diabético con úlcera, descartar osteomielitis",
            "Baja de peso no intencionada, anemia en estudio", "Hipoacusia y vértigo, descartar neurinoma",
            "Accidente de tránsito, politraumatizado", "Tercer molar retenido con dolor",
            "Paciente en silla de ruedas, requiere acompañante", "Sin estudios previos para comparar",
        ],
    },
    relatives={
        "en": [
            "{phrase}. Next of kin: {relative's surname}, {telephone}", "{phrase}. Mrs. {relative's surname} was told",
            "Daughter {relative's surname} present. {phrase}", "{phrase}; referred by Dr {relative's surname}",
        ],
        "es": [
            "{phrase}. Acude con su hija {relative's surname}", "{phrase}. Familiar: {relative's surname} {telephone}",
            "Don {relative's surname}, marido. {phrase}", "{phrase}; informado por {relative's surname}",
        ],
    },
    also_words=frozenset({"Small", "Hand", "Cabeza", "Costillas"}),
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One patient and those around the study. ``secrets`` are the texts that may occur nowhere, by kind."""

    language: str
    given: str
    family: str
    birth: datetime.date
    study: datetime.date
    sex: str
    age: str
    patient_id: str
    accession: str
    physician: tuple[str, str]
    hospital: str
    phrases: tuple[str, ...]
    relatives: tuple[str, ...]
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.family}^{self.given}"


def people(names: Names, count: int, seed: int) -> list[Identity]:
    """``count`` patients, half of them Spanish, the same for the same seed."""
    rng = random.Random(seed)
    return [_person(names, "es" if number % 2 else "en", number, rng) for number in range(count)]


def _person(names: Names, language: str, number: int, rng: random.Random) -> Identity:
    family_names = names.family[language]
    family, given = family_names[number // 2 % len(family_names)], rng.choice(names.given[language])
    second, relative = rng.sample([one for one in family_names if one != family], 2)
    doctor = (
        rng.choice([one for one in family_names if one not in (family, second)]),
        rng.choice(names.given[language]),
    )
    birth = datetime.date(1921, 1, 1) + datetime.timedelta(days=rng.randrange(36_000))
    study = datetime.date(2008, 1, 1) + datetime.timedelta(days=rng.randrange(6_000))
    patient_id, accession = _patient_id(rng), f"{rng.choice(['A', 'ACC-', 'RX', ''])}{rng.randrange(10**7, 10**8)}"
    hospital, city = rng.choice(names.hospitals[language]), rng.choice(names.cities[language])
    street = f"{rng.choice(names.streets[language])} {rng.randrange(100, 9999)}"
    plain = _plain(f"{given}.{family}")
    secrets = {
        "given name": given, "surname": family, "physician's surname": doctor[0], "relative's surname": relative,
        "patient id": patient_id, "accession number": accession, "hospital": hospital, "city": city, "street": street,
        "telephone": _telephone(language, rng), "national id": _national_id(language, rng),
        "record number": f"MRN{rng.randrange(10**6, 10**7)}", "e-mail": f"{plain}@example.org",
        "web address": f"https://portal.example.net/patients/{plain}/{rng.randrange(10**5, 10**6)}",
        "written date": written(rng.choice([birth, study]), language, rng.randrange(8)),
    }  # fmt: skip
    if language == "es":
        secrets["second surname"] = second
    age = f"{min(max(study.year - birth.year, 0), 130):03d}Y"
    phrases = tuple(rng.sample(names.phrases[language], min(3, len(names.phrases[language]))))
    return Identity(
        language, given, f"{family} {second}" if language == "es" else family, birth, study, rng.choice("MF"), age,
        patient_id, accession, doctor, hospital, phrases, tuple(names.relatives[language]), secrets,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Without accents, in lower case: as it stands in an address of a web page."""
    return text.casefold().translate(str.maketrans("áéíóúñü ", "aeiounu-"))


def _patient_id(rng: random.Random) -> str:
    return rng.choice(["{:08d}", "PAT-{:07d}", "H{:06d}X", "{:05d}/19"]).format(rng.randrange(10**5))


def _telephone(language: str, rng: random.Random) -> str:
    a, b, c = rng.randrange(200, 999), rng.randrange(100, 999), rng.randrange(1000, 9999)
    forms = (
        [f"+56 9 {a}4 {c}", f"+34 {a} {b} {c % 1000:03d}"]
        if language == "es"
        else [f"({a}) {b}-{c}", f"+1-{a}-{b}-{c}"]
    )
    return rng.choice(forms)


def _national_id(language: str, rng: random.Random) -> str:
    """A RUT (Chile) or DNI (Spain) with its check character, or a number in the form of the United States."""
    if language == "en":
        return f"{rng.randrange(900, 999)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"
    number = rng.randrange(5_000_000, 25_000_000)
    if rng.random() < 0.5:
        return f"{number:08d}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"
    rest = 11 - sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(str(number)))) % 11
    check = {11: "0", 10: "K"}.get(rest, str(rest))
    return f"{number:,}".replace(",", ".") + f"-{check}"


def written(date: datetime.date, language: str, form: int) -> str:
    """A date as people write it in free text; ``form`` 0 to 7."""
    english, spanish = _MONTHS_EN[date.month - 1], _MONTHS_ES[date.month - 1]
    forms = [
        f"{date:%d/%m/%Y}", f"{date:%Y-%m-%d}", f"{date:%d.%m.%Y}", f"{date:%Y%m%d}", f"{date:%d%m%Y}",
        f"{english} {date.day}, {date.year}" if language == "en" else f"{date.day} de {spanish} de {date.year}",
        f"{date.day}-{(english if language == 'en' else spanish)[:3]}-{date.year}", f"{date:%m/%d/%Y}",
    ]  # fmt: skip
    return forms[form]
