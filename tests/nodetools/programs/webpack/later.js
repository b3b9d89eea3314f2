export const later = () => 'later';
