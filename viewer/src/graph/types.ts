/* What the graph draws. Distances are exact (1 - similarity); node 0 is the centre: the query, or the case asked from. */

export type Status = 'present' | 'none' | 'unknown';

export interface GraphNode {
  id: string;
  rank: number;
  similarity: number;
  distance: number;
  /** Direction from the centre in radians, so that cases alike lie near each other. */
  angle: number;
  status: Status;
  label: string;
  hidden?: boolean;
}

export interface GraphData {
  nodes: GraphNode[];
  /** Positions in nodes, and the distance between the two cases. */
  edges: [number, number, number][];
  calibrated: boolean;
}

export type LayoutKind = 'radial' | 'force';

export interface GraphOptions {
  onSelect(i: number): void;
  onOpen(i: number): void;
  onHover?(i: number): void;
  /** The case in words: for people who hear the page. */
  describe(i: number): string;
  words?: {
    /** A similarity as the page writes it; `digits` that tell rings apart. */
    similarity(value: number, digits?: number): string;
  };
}
